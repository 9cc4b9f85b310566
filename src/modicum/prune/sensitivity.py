"""Sensitivity: remove every block alone, look at the loss, and remove those that raise it least.

The plainest criterion that asks the model itself, and the usual baseline of depth pruning. It knows nothing of what
two missing blocks do together, nor of what training would make up for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from modicum.method import Context, Paper
from modicum.models import Anatomy
from modicum.prune.depth import ScoredDepth, highest
from modicum.prune.masked_loss import masked_losses


class Sensitivity(ScoredDepth):
    """Remove the blocks whose single removal raises the loss least.

    Score: loss without block i - loss, on the same calibration samples with the same noise.
    """

    paper: ClassVar[Paper] = Paper("Layer sensitivity", "baseline")

    def choose(self, anatomy: Anatomy, context: Context) -> tuple[Sequence[int], dict[str, Any]]:
        """The blocks whose removal costs most."""
        depth = len(anatomy.blocks)
        count = self.count(depth)
        objective, asked = self.ask(anatomy, context)
        masks = torch.cat((torch.ones(1, depth), 1 - torch.eye(depth)))  # [1 + blocks, blocks]
        losses = masked_losses(anatomy, objective, asked, masks)
        rise = (losses[1:] - losses[0]).nan_to_num(nan=torch.inf)
        return highest(rise, count), {
            "loss": float(losses[0]),
            "rise": [float(f"{v:.6g}") for v in rise.tolist()],
        }
