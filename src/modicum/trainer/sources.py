"""What plugs into the loop: batches by index, and a loss of a model, a batch and a moment.

Both must depend on their arguments alone. Then a training that was stopped and taken up again sees the same numbers,
without the state of any data loader being stored: batch 812 is batch 812.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Batch = Mapping[str, Tensor]
Batches = Callable[[int], Batch]
"""Index of a batch -> the batch: keyword tensors, first axis is the sample."""

_STRIDE = 1_000_003


@dataclass(frozen=True)
class Moment:
    """Where in the training a loss is computed.

    Attributes:
        step: optimizer step, from 0.
        steps: how many there will be.
        generator: the source of all randomness of this batch, on the device of the model.
    """

    step: int
    steps: int
    generator: torch.Generator

    @property
    def progress(self) -> float:
        """0 at the first step, 1 at the last."""
        return self.step / max(self.steps - 1, 1)


Loss = Callable[[nn.Module, Batch, Moment], Tensor]
"""(model, batch, moment) -> scalar loss, with gradient."""


def batch_seed(seed: int, index: int) -> int:
    """The seed of everything random that happens to batch `index` of a training with that seed."""
    return (seed * _STRIDE + index) % 2**63
