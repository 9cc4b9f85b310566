"""RepKD: learn the teacher's hidden states as well as its outputs.

Large models carry a few activations that are hundreds of times as large as the rest. They dominate the squared error,
so that this diverges where `masked_kd` does not; it is here to be compared with.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from modicum.distill.states import StateDistillation
from modicum.method import Paper


class RepKD(StateDistillation):
    """Train on the teacher's outputs and hidden states: L = alpha L_KD + (1 - alpha) L_data + beta L_rep.

    L_rep is the mean squared difference of the hidden states of paired blocks.
    """

    paper: ClassVar[Paper] = Paper("FitNets: Hints for Thin Deep Nets", "ICLR 2015", "1412.6550")

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean squared difference."""
        return (student.float() - teacher.float()).square().flatten(1).mean(1)
