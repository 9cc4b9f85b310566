"""How to train, as plain values: they are the identity of a training, so a checkpoint knows whose it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import nn


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate.

    Attributes:
        parameters: to train; those that need no gradient are left out by the loop.
        lr: peak learning rate.
        weight_decay: decoupled, as in AdamW.
    """

    parameters: Sequence[nn.Parameter]
    lr: float
    weight_decay: float = 0.0


class Settings(BaseModel):
    """Length, schedule and arithmetic of a training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=1, description="optimizer steps")
    accumulate: int = Field(1, ge=1, description="batches whose gradients make one step")
    schedule: Literal["constant", "cosine"] = Field("constant", description="learning rate after the warm-up")
    warmup: int = Field(0, ge=0, description="steps over which the learning rate rises from zero")
    final: float = Field(0.0, ge=0, le=1, description="share of the learning rate that a cosine ends with")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of Adam's two moments")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient of all parameters together")
    average: float | None = Field(None, gt=0, lt=1, description="decay of the moving average of the weights")
    bf16: bool = Field(False, description="compute the loss under bfloat16 autocast")
    save_every: int = Field(200, ge=1, description="steps between two checkpoints")
    seed: int = Field(0, ge=0, description="of everything random")

    def factor(self, step: int) -> float:
        """What the learning rates are multiplied by at `step`, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        progress = (step - self.warmup) / max(self.steps - 1 - self.warmup, 1)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
