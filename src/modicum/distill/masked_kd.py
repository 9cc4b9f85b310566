"""Masked knowledge distillation: learn the teacher's hidden states, but not its massive activations.

A few activations of a large model are hundreds of times as large as the rest, at places that differ from model to
model. In a squared error they drown everything else. So whatever lies more than k standard deviations from the mean
of its sample is set to zero, in the student's and in the teacher's states each by itself:

    mask = |H - mean| < k std                  mean, unbiased std: over the tokens and channels of a sample
    L_rep = mean (mask_s H_s - mask_t H_t)^2   over tokens, channels and pairs of blocks
    L = alpha L_KD + (1 - alpha) L_data + beta L_rep

A place that only one of the two masks counts in full, as in the published code (the paper leaves it out).

Fang et al., TinyFusion, CVPR 2025, arXiv 2412.01199.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from modicum.distill.states import StateDistillation
from modicum.method import Paper


class MaskedKD(StateDistillation):
    """Train on the teacher's outputs and hidden states, leaving out activations beyond k standard deviations.

    L = alpha L_KD + (1 - alpha) L_data + beta L_rep; L_rep compares the states of paired blocks where they are not
    massive: mean (mask_s H_s - mask_t H_t)^2, mask = |H - mean| < k std.
    """

    paper: ClassVar[Paper] = Paper(
        "TinyFusion: Diffusion Transformers Learned Shallow", "CVPR 2025", "2412.01199"
    )

    k: float = Field(2.0, gt=0, description="standard deviations beyond which a state is massive")

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean squared difference of the states that are not massive."""
        difference = ordinary(student, self.k) - ordinary(teacher, self.k)
        return difference.square().flatten(1).mean(1)


def ordinary(states: Tensor, k: float) -> Tensor:
    """Hidden states float32 `[B, tokens, channels]` with zeros where they are massive for their sample."""
    states = states.float()
    flat = states.detach().flatten(1)
    std, mean = (value.view(-1, 1, 1) for value in (flat.std(1), flat.mean(1)))
    return states * ((states.detach() - mean).abs() < k * std)
