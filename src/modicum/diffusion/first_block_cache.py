"""First-Block-Cache: the first block tells whether the others would say anything new.

How much a step differs from the one before varies along a sampler, so a fixed interval is too often in one place and
too rare in another. Here every step runs the first block. If what it adds to the tokens is close to what it added at
the last full step, the other blocks are left out, and all that they added together then is added again:

    r = block_0(x) - x
    mean |r - r_full| < tau mean |r_full|:    out = block_0(x) + tail_full           tail = out - block_0(x)
    else:                                     run all, and keep r and tail

A fixed rule of the ParaAttention project, without a paper; the idea of judging a step by the front of the network is
TeaCache's (Liu et al., CVPR 2025, arXiv 2411.19108). The comparison is strict, so that tau = 0 is the plain sampler
whatever the network is. The mean goes over the whole batch, as in the original: what is drawn depends, within the
tolerance, on what is drawn beside it. What is kept is the sum of gated branches, two tensors [B, T, D] in all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from modicum.diffusion.step_cache import BRANCHES, StepCache, StepMethod
from modicum.method import Paper
from modicum.models.dit import Block


class FirstBlockCache(StepMethod):
    """Run the first block of every step, and the others only if what it adds has changed by a share tau.

    r = block_0(x) - x. If mean |r - r_full| < tau mean |r_full|, the tail residual of the last full step is reused.
    """

    paper: ClassVar[Paper] = Paper(
        "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model", "CVPR 2025", "2411.19108"
    )

    tau: float = Field(
        0.1, ge=0, allow_inf_nan=False, description="share of change that is let pass; 0 is the plain sampler"
    )

    def cache(self, passes: int) -> FirstBlockState:
        """An empty cache for a generation of that many passes."""
        return FirstBlockState(passes, self.tau)


class FirstBlockState(StepCache):
    """What the first block, and all others together, added at the last full pass.

    Args:
        passes: of the generation.
        tau: threshold.
    """

    def __init__(self, passes: int, tau: float) -> None:
        super().__init__(passes)
        self.tau = tau
        self.first: Tensor | None = None
        self.tail: Tensor | None = None

    def stack(self, blocks: Sequence[Block], x: Tensor, c: Tensor) -> Tensor:
        """`x` `[B, T, D]`, `c` `[B, D]` to `[B, T, D]`."""
        head = blocks[0](x, c)
        residual = head - x
        self.evaluated += BRANCHES
        if self.tail is not None and self._close(residual):
            return head + self.tail
        x = head
        for block in blocks[1:]:
            x = block(x, c)
        self.evaluated += BRANCHES * (len(blocks) - 1)
        self.first, self.tail = residual, x - head
        return x

    def kept(self) -> Iterable[Tensor]:
        """Two tensors `[B, T, D]`, whatever the depth."""
        return (tensor for tensor in (self.first, self.tail) if tensor is not None)

    def _close(self, residual: Tensor) -> bool:
        assert self.first is not None
        before = self.first.float()
        change = (residual.float() - before).abs().mean()
        return bool(
            change < self.tau * before.abs().mean()
        )  # the one value per pass that the host has to know
