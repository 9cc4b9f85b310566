"""What a training tells: of every step, and of itself at the end."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Record:
    """One step, as callbacks see it.

    Attributes:
        step: steps done, this one included.
        loss: mean over the batches of the step.
        gradient: its norm before clipping.
        factor: of the learning rates.
        skipped: whether the step was left out because something was not finite.
    """

    step: int
    loss: float
    gradient: float
    factor: float
    skipped: bool


@dataclass(frozen=True)
class Trained:
    """What a finished training says of itself.

    Attributes:
        steps: done.
        skipped: of these, left out.
        loss: moving mean of the loss at the end; NaN if this process did no step.
        seconds: of training, resumed parts included.
    """

    steps: int
    skipped: int
    loss: float
    seconds: float
