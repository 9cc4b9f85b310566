"""Random masks: many random choices of blocks, judged by their loss before any training.

What a learned choice is to be compared with. The best of many random masks is the best that calibration alone can
find, and yet, after training, worse than one of middling loss (TinyFusion, table 2): hence `take`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from modicum.method import Context, Paper
from modicum.models import Anatomy
from modicum.prune.depth import ScoredDepth
from modicum.prune.masked_loss import masked_losses


class RandomMasks(ScoredDepth):
    """Draw many random choices of blocks and take the one of the best or of the median loss."""

    paper: ClassVar[Paper] = Paper("Random masks", "baseline", "2412.01199")

    masks: int = Field(100_000, ge=1, description="choices that are drawn")
    take: Literal["best", "median"] = Field("best", description="which of them is taken, by its loss")

    def choose(self, anatomy: Anatomy, context: Context) -> tuple[Sequence[int], dict[str, Any]]:
        """The choice whose loss has the wanted rank."""
        depth = len(anatomy.blocks)
        count = self.count(depth)
        objective, asked = self.ask(anatomy, context)
        order = torch.rand(self.masks, depth, generator=context.generator).argsort(1)
        masks = torch.zeros(self.masks, depth).scatter_(1, order[:, :count], 1.0).unique(dim=0)
        losses = masked_losses(anatomy, objective, asked, masks).nan_to_num(nan=torch.inf)
        ranked = losses.argsort(stable=True)
        chosen = ranked[0 if self.take == "best" else (len(ranked) - 1) // 2]
        notes = {"loss": float(losses[chosen]), "best": float(losses.min()), "different": len(masks)}
        return masks[chosen].nonzero().flatten().tolist(), notes
