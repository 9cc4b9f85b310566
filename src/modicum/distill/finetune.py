"""Fine-tuning: train the compressed model on its own loss. The baseline of every recovery."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from modicum.distill.recovery import Recovery, asked
from modicum.method import Context, Paper
from modicum.models import Anatomy
from modicum.trainer import Batch, Loss, Moment, Objective


class Finetune(Recovery):
    """Train all weights on the model's own loss; needs no teacher.

    AdamW, cosine from `lr` to `final_lr`; the moving average of the weights is the result.
    """

    paper: ClassVar[Paper] = Paper("Fine-tuning", "baseline")

    def loss(
        self, anatomy: Anatomy, taps: Sequence[nn.Module], objective: Objective, context: Context
    ) -> Loss:
        """The model's own."""

        def of(network: nn.Module, batch: Batch, at: Moment) -> Tensor:
            question, output = asked(objective, network, batch, at)
            return objective.loss(output, question).mean()

        return of
