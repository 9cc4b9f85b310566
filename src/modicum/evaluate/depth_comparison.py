"""DepthComparison: a diffusion transformer, what depth pruning left of it, and what training gave back.

Like a Comparison it is data: saved as JSON, read back, shown as a page. What was not measured is None.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from modicum.errors import UnusableData
from modicum.evaluate.speed import Spread

FORMAT = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Decision(_Record):
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


class DepthEntry(_Record):
    """One model.

    Attributes:
        name: of its directory.
        blocks: of its transformer.
        parameters: weights in all.
        disk_bytes: of its weight files.
        training_losses: last loss of every training that made it, by method.
        accuracy: share of its pictures that the judge takes for their class.
        frechet: distance of its pictures to real ones in the judge's feature space.
        seconds: to draw one picture, batch by batch.
        seconds_ratio: over those of the first model, batch by batch.
    """

    name: str
    blocks: int
    parameters: int
    disk_bytes: int
    training_losses: dict[str, float] = {}
    accuracy: float | None = None
    frechet: float | None = None
    seconds: Spread
    seconds_ratio: Spread


class DepthComparison(_Record):
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

    format: Literal[1] = 1
    entries: tuple[DepthEntry, ...]
    decisions: tuple[Decision, ...] = ()
    labels: tuple[int, ...]
    seeds: tuple[int, ...]
    at_once: int
    sampling: dict[str, Any] = {}
    command: str | None = None
    environment: dict[str, Any] = {}

    def save(self, path: str | Path) -> Path:
        """Writes the comparison as JSON, to a temporary name first."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> DepthComparison:
        """Reads a saved comparison.

        Raises:
            UnusableData: the file is missing, is no comparison, or is of a format that this version does not know.
        """
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UnusableData(f"Cannot read {str(path)!r}: {error.strerror}.", "Check the path.") from error
        except (ValidationError, UnicodeDecodeError) as error:
            raise UnusableData(
                f"{str(path)!r} is not a comparison of depths of format {FORMAT}.",
                "Give the report.json of this or an older version of modicum.",
            ) from error
