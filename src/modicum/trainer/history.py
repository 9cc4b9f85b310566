"""How a training went, at no more than 200 points: the mean loss since the last point, and whatever else is watched.

The points lie evenly over the steps, so a training that was killed and taken up again records the same ones; the state
travels in the checkpoints. What is watched stays where it was computed until somebody asks for numbers: no step waits
for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from modicum.trainer.records import Record

MOST_POINTS = 200
PLACES = 5  # of a loss, in notes

Watch = Callable[[], Mapping[str, Tensor]]
"""Named series of a history: one vector each, of the same length at every point."""


def nothing() -> dict[str, Tensor]:
    """No series beside the loss."""
    return {}


class History:
    """The points of one training.

    Args:
        steps: how many the training has.
        watch: series beside the loss; asked at every point, for tensors that are the history's own.

    Attributes:
        every: steps between two points; the last step is one in any case.
        step: of every point.
        loss: mean since the point before it; None if every step in between was left out.
        series: what was watched, a vector per point.
    """

    def __init__(self, steps: int, watch: Watch = nothing) -> None:
        self.steps = steps
        self.every = -(-steps // MOST_POINTS)
        self.watch = watch
        self.step: list[int] = []
        self.loss: list[float | None] = []
        self.series: dict[str, list[Tensor]] = {}
        self._sum, self._count = 0.0, 0

    def add(self, record: Record) -> None:
        """Take a step in."""
        if not record.skipped:
            self._sum += record.loss
            self._count += 1
        if record.step % self.every == 0 or record.step == self.steps:
            self.step.append(record.step)
            self.loss.append(self._sum / self._count if self._count else None)
            for name, values in self.watch().items():
                self.series.setdefault(name, []).append(values)
            self._sum, self._count = 0.0, 0

    def state(self) -> dict[str, Any]:
        """Everything as plain values, for a checkpoint."""
        return {
            "step": self.step,
            "loss": self.loss,
            "series": self._plain(),
            "since": [self._sum, self._count],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.step, self.loss = list(state["step"]), list(state["loss"])
        self.series = {name: list(torch.tensor(rows)) for name, rows in state["series"].items()}
        self._sum, self._count = state["since"]

    def notes(self, places: int = 4) -> dict[str, Any]:
        """The points as they are kept beside a model: losses to five digits, all else to `places` behind the point."""
        losses = [None if loss is None else float(f"{loss:.{PLACES}g}") for loss in self.loss]
        series = {
            name: [[round(value, places) for value in row] for row in rows]
            for name, rows in self._plain().items()
        }
        return {"step": self.step, "loss": losses, **series}

    def _plain(self) -> dict[str, list[list[float]]]:
        return {name: [row.tolist() for row in rows] for name, rows in self.series.items()}
