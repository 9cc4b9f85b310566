"""What a search for a pruning metric was asked, and what it found; kept as JSON."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from modicum.evaluate.saved import Record, SavedRecord


class Settings(Record):
    """What a search depends on, beside the model."""

    population: int = Field(20, ge=2, description="candidates per generation")
    generations: int = Field(10, ge=0, description="after the first, random one")
    sparsity: float = Field(0.5, gt=0, lt=1, description="fraction of every output row that is pruned")
    seed: int = Field(0, ge=0, lt=2**63, description="of everything random")
    starts: tuple[str, ...] = Field((), description="names or formulas among the first candidates")
    source: str = Field("stdlib", description="text")
    samples: int = Field(32, ge=1, description="calibration windows")
    length: int = Field(256, ge=2, description="tokens per window")
    windows: int = Field(16, ge=1, description="windows on which a candidate is evaluated")


class Entry(Record):
    """One candidate of the search; its number is its place in the list.

    Attributes:
        genome: the formula.
        generation: from 0.
        operator: what made it.
        parents: their numbers.
        fitness: perplexity; None if the formula gave NaN or infinity.
        full: False if it was given up early and the fitness is an estimate.
        size: number of inputs, numbers and operations.
        seconds: what trying it out took.
    """

    genome: str
    generation: int
    operator: str
    parents: tuple[int, ...]
    fitness: float | None
    full: bool
    size: int
    seconds: float


class Named(Record):
    """A metric beside others.

    Attributes:
        name: of a published metric, or "found".
        formula: of it.
        size: number of inputs, numbers and operations.
        fitness: perplexity on the text of the search.
        held_out: perplexity on text that the search never saw.
    """

    name: str
    formula: str
    size: int
    fitness: float
    held_out: float


class MetricSearch(SavedRecord):
    """A finished search.

    Attributes:
        model: name of the language model.
        settings: what was asked.
        entries: all candidates in the order in which they were drawn.
        draws: candidates that were drawn until so many were valid and new.
        best: number of the best one.
        dense: perplexity of the dense model on the text of the search.
        dense_held_out: on text that the search never saw.
        metrics: the found metric first, then the published ones.
        seconds: what all trials took, added up.
        environment: machine and versions.
        command: that repeats it.
    """

    kind: ClassVar[str] = "a search for a pruning metric"

    model: str
    settings: Settings
    entries: list[Entry]
    draws: int
    best: int
    dense: float
    dense_held_out: float
    metrics: list[Named]
    seconds: float
    environment: dict[str, Any]
    command: str | None = None

    @property
    def found(self) -> Named:
        """The best metric, ready for `--set metric=...`."""
        return self.metrics[0]

    def ancestors(self) -> list[int]:
        """Numbers of the best candidate and of all that it descends from, the oldest first."""
        known, waiting = set[int](), [self.best]
        while waiting:
            number = waiting.pop()
            if number not in known:
                known.add(number)
                waiting += self.entries[number].parents
        return sorted(known)
