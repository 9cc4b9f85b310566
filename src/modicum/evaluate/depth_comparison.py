"""DepthComparison: a diffusion transformer, what depth pruning left of it, and what training gave back.

Like a Comparison it is data: saved as JSON, read back, shown as a page. What was not measured is None.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from modicum.evaluate.coding import CodingRecord
from modicum.evaluate.saved import Record, SavedRecord
from modicum.evaluate.speed import Spread


class LossCurve(Record):
    """How the loss of a training went.

    Attributes:
        step: of every point, ascending.
        loss: mean since the point before; None where every step in between was left out.
    """

    step: tuple[int, ...] = Field(min_length=1)
    loss: tuple[float | None, ...]

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        for name in self.__class__.model_fields:
            if len(getattr(self, name)) != len(self.step):
                raise ValueError(f"{name} has {len(getattr(self, name))} points, step has {len(self.step)}")
        return self


class SearchCurve(LossCurve):
    """How a learned choice of blocks came about.

    Attributes:
        kept_probability: of every block at every point, that it stays.
        confidence: at every point, the probability of the likeliest choice of every group.
    """

    kept_probability: tuple[tuple[float, ...], ...]
    confidence: tuple[tuple[float, ...], ...]


class Decision(Record):
    """Which blocks a method kept.

    Attributes:
        method: its name.
        kept: indices of the blocks that stayed.
        of: blocks there were.
        groups: (N, M) of each group of consecutive blocks; empty if the whole stack was one.
        confidence: probability of the choice, by group; empty if it was not drawn.
        history: how it came about; None if it was not learned, or nobody wrote it down.
    """

    method: str
    kept: tuple[int, ...]
    of: int
    groups: tuple[tuple[int, int], ...] = ()
    confidence: tuple[float, ...] = ()
    history: SearchCurve | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        found = self.history
        rows = () if found is None else found.kept_probability
        groups = () if found is None else found.confidence
        if any(len(row) != self.of for row in rows) or any(len(row) != len(self.groups) for row in groups):
            raise ValueError(f"the history is not that of {self.of} blocks in {len(self.groups)} groups")
        return self


class DepthEntry(Record):
    """One model.

    Attributes:
        name: of its directory.
        blocks: of its transformer.
        parameters: weights in all.
        disk_bytes: of its weight files.
        training_losses: last loss of every training that made it, by method.
        loss_curves: of these trainings, as far as they were written down.
        policies: under which it drew, those saved beside its weights.
        accuracy: share of its pictures that the judge takes for their class.
        frechet: distance of its pictures to real ones in the judge's feature space.
        seconds: to draw one picture, batch by batch.
        seconds_ratio: over those of the first model, batch by batch.
    """

    name: str
    blocks: int
    parameters: int
    disk_bytes: int
    training_losses: dict[str, float] = Field(default={})
    loss_curves: dict[str, LossCurve] = Field(default={})
    policies: tuple[str, ...] = ()
    accuracy: float | None = None
    frechet: float | None = None
    seconds: Spread
    seconds_ratio: Spread


class DepthComparison(SavedRecord):
    """The same pictures, from equal noise, by an original and by what was made of it.

    Attributes:
        format: version of this layout.
        entries: the original first.
        decisions: of all entries, each once.
        coding: how the weights of the last entry are coded without loss; None if they are not.
        labels: the class of every picture.
        seeds: one per picture.
        at_once: pictures per batch.
        sampling: guidance, steps and the like.
        command: the exact command that repeats it.
        environment: the machine and the versions.
    """

    kind: ClassVar[str] = "a comparison of depths"

    format: Literal[1] = 1
    entries: tuple[DepthEntry, ...]
    decisions: tuple[Decision, ...] = ()
    coding: CodingRecord | None = None
    labels: tuple[int, ...]
    seeds: tuple[int, ...]
    at_once: int
    sampling: dict[str, Any] = Field(default={})
    command: str | None = None
    environment: dict[str, Any] = Field(default={})
