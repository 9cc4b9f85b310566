"""DepthComparison: a diffusion transformer, what depth pruning left of it, and what training gave back.

Like a Comparison it is data: saved as JSON, read back, shown as a page. What was not measured is None.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from modicum.evaluate.saved import Record, SavedRecord
from modicum.evaluate.speed import Spread


class Decision(Record):
    """Which blocks a method kept.

    Attributes:
        method: its name.
        kept: indices of the blocks that stayed.
        of: blocks there were.
        groups: (N, M) of each group of consecutive blocks; empty if the whole stack was one.
        confidence: probability of the choice, by group; empty if it was not drawn.
    """

    method: str
    kept: tuple[int, ...]
    of: int
    groups: tuple[tuple[int, int], ...] = ()
    confidence: tuple[float, ...] = ()


class DepthEntry(Record):
    """One model.

    Attributes:
        name: of its directory.
        blocks: of its transformer.
        parameters: weights in all.
        disk_bytes: of its weight files.
        training_losses: last loss of every training that made it, by method.
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
    labels: tuple[int, ...]
    seeds: tuple[int, ...]
    at_once: int
    sampling: dict[str, Any] = Field(default={})
    command: str | None = None
    environment: dict[str, Any] = Field(default={})
