"""Knowledge distillation: learn what the teacher says of an input, beside what the data says.

Hinton et al., 2015, arXiv 1503.02531, at temperature 1. For diffusion models the teacher's output is its noise and the
distribution of its reverse step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from modicum.distill.recovery import Recovery, asked, teach, teacher_of
from modicum.method import Context, Paper
from modicum.models import Anatomy
from modicum.trainer import Batch, Loss, Moment, Objective


class LogitsKD(Recovery):
    """Train on the teacher's outputs: L = alpha L_KD + (1 - alpha) L_data.

    L_KD is the divergence of the outputs: KL for tokens and classes; for diffusion the squared error of the noise and
    the KL of the reverse step.
    """

    paper: ClassVar[Paper] = Paper(
        "Distilling the Knowledge in a Neural Network", "NIPS 2014 Workshop", "1503.02531"
    )

    asks_teacher: ClassVar[bool] = True

    alpha: float = Field(0.9, ge=0, le=1, description="weight of the teacher against the data")

    def loss(
        self, anatomy: Anatomy, taps: Sequence[nn.Module], objective: Objective, context: Context
    ) -> Loss:
        """Teacher and data, weighed."""
        teacher = teacher_of(self.name, anatomy, context)

        def of(network: nn.Module, batch: Batch, at: Moment) -> Tensor:
            question, output = asked(objective, network, batch, at)
            taught = objective.divergence(output, teach(objective, teacher, question), question)
            return (self.alpha * taught + (1 - self.alpha) * objective.loss(output, question)).mean()

        return of
