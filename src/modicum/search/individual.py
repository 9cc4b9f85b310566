"""What a search remembers of a candidate: where it came from, and what it was worth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic

from modicum.search.genotype import G


@dataclass(frozen=True)
class Draft(Generic[G]):
    """A candidate that nobody has tried yet.

    Attributes:
        number: its place in the order in which candidates are drawn, from 0.
        generation: from 0.
        genotype: the candidate; as text it is the genome.
        operator: what made it ("grow", "full", "start", or the name of a variation).
        parents: their numbers.
        behaviour: hash of what it does; no other candidate has the same.
        draws: how many candidates were drawn until one was valid and new, this one included.
    """

    number: int
    generation: int
    genotype: G
    operator: str
    parents: tuple[int, ...]
    behaviour: str
    draws: int

    @property
    def genome(self) -> str:
        """The candidate as text."""
        return str(self.genotype)


@dataclass(frozen=True)
class Outcome:
    """What trying out a candidate gave.

    Attributes:
        fitness: less is better; None if the candidate turned out to be invalid.
        full: False if it was given up early, and the fitness is an estimate.
        seconds: what it took.
    """

    fitness: float | None
    full: bool = True
    seconds: float = 0.0


@dataclass(frozen=True)
class Individual(Generic[G]):
    """A candidate with its outcome.

    Attributes:
        draft: the candidate.
        outcome: what it was worth.
        elapsed: seconds since its generation was begun, when the outcome was known; workers share them.
    """

    draft: Draft[G]
    outcome: Outcome
    elapsed: float = 0.0

    @property
    def rank(self) -> tuple[float, int]:
        """What individuals are sorted by: fitness, and the older one first where that is equal."""
        fitness = self.outcome.fitness
        return (math.inf if fitness is None else fitness, self.draft.number)
