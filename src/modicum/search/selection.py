"""Who breeds, and who survives; both are plug-ins of an evolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from modicum.search.individual import Individual

Select = Callable[[Sequence[Individual[Any]], Random], Individual[Any]]
"""A parent out of a population."""

Survive = Callable[[Sequence[Individual[Any]], Sequence[Individual[Any]], int], list[Individual[Any]]]
"""The next population, best first, out of the last one, its children, and the number of those that may live."""


@dataclass(frozen=True)
class Tournament:
    """The best of `size` that are drawn."""

    size: int = 5

    def __call__(self, population: Sequence[Individual[Any]], generator: Random) -> Individual[Any]:
        drawn = generator.sample(population, min(self.size, len(population)))
        return min(drawn, key=lambda each: each.rank)


@dataclass(frozen=True)
class Elitism:
    """The best `elites` of the last population stay whatever the children are; the best children fill up."""

    elites: int = 2

    def __call__(
        self, population: Sequence[Individual[Any]], children: Sequence[Individual[Any]], size: int
    ) -> list[Individual[Any]]:
        def ranked(some: Sequence[Individual[Any]]) -> list[Individual[Any]]:
            return sorted(some, key=lambda each: each.rank)

        old, young = ranked(population), ranked(children)
        next_ones = old[: self.elites] + young[: size - min(self.elites, len(old))]
        missing = size - len(next_ones)  # a generation may have found fewer new candidates than it wanted
        return ranked(next_ones + old[self.elites : self.elites + missing])
