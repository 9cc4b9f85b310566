"""ShortGPT: a block that hardly turns the hidden states is redundant.

In a deep residual stack many blocks add little: what leaves them points where it pointed before. Block influence is
one minus that cosine, averaged over tokens; the blocks with the least are removed at once.

Men et al., ShortGPT: Layers in Large Language Models are More Redundant Than You Expect, ACL Findings 2025, arXiv
2403.03853. On diffusion models the states are those of noisy pictures at all steps. The script that TinyFusion was
compared with feeds clean latents at steps 0 .. 249 and never removes the last block: `as_compared` does so too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field

from modicum.calibrate.influence import influence
from modicum.method import Context, Paper
from modicum.models import Anatomy
from modicum.prune.depth import ScoredDepth, highest
from modicum.trainer.objective import Question

CLEAN_STEPS, ALL_STEPS = 250, 1000


class ShortGPT(ScoredDepth):
    """Remove the blocks that turn the hidden states least.

    Score: BI_i = 1 - mean over tokens of cos(input of block i, output of block i); the lowest go.
    """

    paper: ClassVar[Paper] = Paper(
        "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
        "ACL Findings 2025",
        "2403.03853",
    )

    as_compared: bool = Field(
        False, description="diffusion: clean latents at steps 0-249, last block never removed"
    )

    def choose(self, anatomy: Anatomy, context: Context) -> tuple[Sequence[int], dict[str, Any]]:
        """The blocks of the highest influence."""
        count = self.count(len(anatomy.blocks))
        objective, asked = self.ask(anatomy, context)
        if self.as_compared:
            asked = [_clean(question) for question in asked]
        scores = influence(anatomy, (partial(objective.answer, anatomy.model, q) for q in asked)).angle
        notes = {"influence": [float(f"{value:.6g}") for value in scores.tolist()]}
        if self.as_compared:
            scores[-1] = torch.inf
        return highest(scores, count), notes


def _clean(question: Question) -> Question:
    """A diffusion model's question without noise."""
    if "x0" not in question:
        return question
    return {**question, "x": question["x0"], "t": question["t"] * CLEAN_STEPS // ALL_STEPS}
