"""Blocks that can be switched off per sample: x <- m block(x) + (1 - m) x, m in {0, 1} for every sample.

All blocks run for all samples; the mask decides what goes on. So a mask can carry a gradient: that of "what if this
block had been left out". Sums with 1 and 0 are exact, so a sample whose mask is 1 everywhere sees the whole model,
bit for bit.

Optionally a block is computed again in the backward pass instead of keeping its activations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modicum.models.anatomy import Anatomy


class GatedBlock(nn.Module):
    """A block behind a switch.

    Args:
        block: reads hidden states `[B, ...]` as its first argument (or `hidden_states`) and returns them, alone or
            first in a tuple.
        recompute: whether activations are computed again in the backward pass.

    Attributes:
        mask: `[B]`, or None, which lets every sample through the block.
    """

    mask: Tensor | None

    def __init__(self, block: nn.Module, recompute: bool = False) -> None:
        super().__init__()
        self.block = block
        self.recompute = recompute
        self.mask = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the block returns, with its hidden states gated."""
        output = self._run(*args, **kwargs)
        if self.mask is None:
            return output
        before = args[0] if args else kwargs["hidden_states"]
        if isinstance(output, tuple):
            return (self._gated(output[0], before), *output[1:])
        return self._gated(output, before)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.block, *args, use_reentrant=False, **kwargs)
        return self.block(*args, **kwargs)

    def _gated(self, after: Tensor, before: Tensor) -> Tensor:
        assert self.mask is not None
        mask = self.mask.to(after.dtype).view(-1, *[1] * (after.dim() - 1))  # [B, 1, ...]
        return mask * after + (1 - mask) * before

    def __getattr__(self, name: str) -> Any:
        # Some models ask a block about itself (its attention type) before calling it.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)


def gate(anatomy: Anatomy, recompute: bool = False) -> list[GatedBlock]:
    """Put every block of a model behind a switch, in place; `ungate` takes the switches out again."""
    gated = [GatedBlock(block.module, recompute) for block in anatomy.blocks]
    for block, switch in zip(anatomy.blocks, gated, strict=True):
        anatomy.model.set_submodule(block.name, switch)
    return gated


def ungate(anatomy: Anatomy) -> None:
    """Put the blocks themselves back."""
    for block in anatomy.blocks:
        anatomy.model.set_submodule(block.name, block.module)
