"""Flux-Lite: a block that hardly moves the hidden states is redundant, measured by the squared distance.

The same idea as ShortGPT's, with lengths counted: the mean squared error between what enters a block and what leaves
it. Freepik, FLUX.1 Lite, 2024, https://huggingface.co/Freepik/flux.1-lite-8B; no paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from modicum.calibrate.influence import influence
from modicum.method import Context, Paper
from modicum.models import Anatomy
from modicum.prune.depth import ScoredDepth, highest


class FluxLite(ScoredDepth):
    """Remove the blocks that move the hidden states least.

    Score: the mean squared difference between input and output of a block; the lowest go.
    """

    paper: ClassVar[Paper] = Paper(
        "FLUX.1 Lite: Distilling Flux1.dev for Efficient Text-to-Image Generation", "2024"
    )

    def choose(self, anatomy: Anatomy, context: Context) -> tuple[Sequence[int], dict[str, Any]]:
        """The blocks of the largest distance."""
        count = self.count(len(anatomy.blocks))
        objective, asked = self.ask(anatomy, context)
        scores = influence(anatomy, (partial(objective.answer, anatomy.model, q) for q in asked)).distance
        return highest(scores, count), {"distance": [float(f"{value:.6g}") for value in scores.tolist()]}
