"""What a search was asked, and what it found; kept as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from modicum.evaluate.saved import Record, SavedRecord


class Asked(Record):
    """What every search on a language model depends on, beside the model."""

    population: int = Field(20, ge=2, description="candidates per generation")
    generations: int = Field(10, ge=0, description="after the first, random one")
    seed: int = Field(0, ge=0, lt=2**63, description="of everything random")
    source: str = Field("stdlib", description="text")
    samples: int = Field(32, ge=1, description="calibration windows")
    length: int = Field(256, ge=2, description="tokens per window")
    windows: int = Field(16, ge=1, description="windows on which a candidate is evaluated")


class Settings(Asked):
    """What a search for a pruning metric depends on."""

    sparsity: float = Field(0.5, gt=0, lt=1, description="fraction of every output row that is pruned")
    starts: tuple[str, ...] = Field((), description="names or formulas among the first candidates")


class SparsitySettings(Asked):
    """What a search for a sparsity per block depends on."""

    sparsity: float = Field(0.5, gt=0, le=0.95, description="mean over all weights that are pruned")
    method: str = Field("prune.wanda", description="whose scores say which weights of a layer go")
    options: dict[str, Any] = Field({}, description="settings of the method")


class Entry(Record):
    """One candidate of a search; its number is its place in the list.

    Attributes:
        genome: the candidate as text.
        generation: from 0.
        operator: what made it.
        parents: their numbers.
        fitness: perplexity; None if it came out as NaN or infinity.
        full: False if it was given up early and the fitness is an estimate.
        size: number of its parts.
        seconds: what trying it out took.
        elapsed: seconds from the beginning of its generation until that was known.
    """

    genome: str
    generation: int
    operator: str
    parents: tuple[int, ...]
    fitness: float | None
    full: bool
    size: int
    seconds: float
    elapsed: float


class Compared(Record):
    """The best candidate, or what it is compared with.

    Attributes:
        name: "found", or of what it is compared with.
        fitness: perplexity on the text of the search.
        held_out: perplexity on text that the search never saw.
    """

    name: str
    fitness: float
    held_out: float

    @property
    def genome(self) -> str:
        """It as text."""
        raise NotImplementedError


class Named(Compared):
    """A metric beside others.

    Attributes:
        formula: of it.
        size: number of inputs, numbers and operations.
    """

    formula: str
    size: int

    @property
    def genome(self) -> str:
        return self.formula


class Allotted(Compared):
    """Sparsities beside others.

    Attributes:
        sparsities: of the blocks, in order.
        zeros: fraction of the weights that were really pruned; whole numbers of weights go.
    """

    sparsities: tuple[float, ...]
    zeros: float

    @property
    def genome(self) -> str:
        return " ".join(f"{value:g}" for value in self.sparsities)


class Search(SavedRecord):
    """A finished search.

    Attributes:
        model: name of the language model.
        entries: all candidates in the order in which they were drawn.
        draws: candidates that were drawn until so many were valid and new.
        best: number of the best one.
        dense: perplexity of the dense model on the text of the search.
        dense_held_out: on text that the search never saw.
        seconds: what all trials took, added up.
        environment: machine and versions.
        command: that repeats it.
    """

    model: str
    entries: list[Entry]
    draws: int
    best: int
    dense: float
    dense_held_out: float
    seconds: float
    environment: dict[str, Any]
    command: str | None = None

    @property
    def compared(self) -> Sequence[Compared]:
        """What was found, first, and what it is compared with."""
        raise NotImplementedError

    @property
    def generation_seconds(self) -> list[float]:
        """What each generation took by the clock, all workers together."""
        took: dict[int, float] = {}
        for entry in self.entries:
            took[entry.generation] = max(took.get(entry.generation, 0.0), entry.elapsed)
        return [took[generation] for generation in sorted(took)]

    def ancestors(self) -> list[int]:
        """Numbers of the best candidate and of all that it descends from, the oldest first."""
        known, waiting = set[int](), [self.best]
        while waiting:
            number = waiting.pop()
            if number not in known:
                known.add(number)
                waiting += self.entries[number].parents
        return sorted(known)


class MetricSearch(Search):
    """A finished search for a pruning metric.

    Attributes:
        settings: what was asked.
        metrics: the found metric first, then the published ones.
    """

    kind: ClassVar[str] = "a search for a pruning metric"

    settings: Settings
    metrics: list[Named]

    @property
    def compared(self) -> Sequence[Named]:
        return self.metrics

    @property
    def found(self) -> Named:
        """The best metric, ready for `--set metric=...`."""
        return self.metrics[0]


class SparsitySearch(Search):
    """A finished search for a sparsity per block.

    Attributes:
        settings: what was asked.
        blocks: names of the blocks that are pruned, in order.
        allocations: the found sparsities first, then the uniform ones and those of OWL.
    """

    kind: ClassVar[str] = "a search for a sparsity per block"

    settings: SparsitySettings
    blocks: tuple[str, ...]
    allocations: list[Allotted]

    @property
    def compared(self) -> Sequence[Allotted]:
        return self.allocations

    @property
    def found(self) -> Allotted:
        """The best sparsities."""
        return self.allocations[0]

    @property
    def table(self) -> dict[str, float]:
        """The best sparsity of each block by its name, as `allocation` of a pruning method takes it."""
        return dict(zip(self.blocks, self.found.sparsities, strict=True))
