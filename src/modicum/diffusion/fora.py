"""FORA: every N-th step computes all branches; the steps between take them from there.

The output of an attention or feed-forward layer changes little from one step of a sampler to the next; what the time
does to it sits mostly in the shift, scale and gate of the block, which are cheap. So the outputs before the gate are
kept at a full step, and a step between multiplies them with the gates of its own time:

    x <- x + g1(t) attn_kept,   x <- x + g2(t) mlp_kept

Steps are counted down to 0, the last one; full are the first one and all k with k mod N = 0. That keeps two tensors
[B, T, D] per block. Selvaraju et al., FORA: Fast-Forward Caching in Diffusion Transformer Acceleration, 2024,
arXiv 2407.01425. A solver that calls the network twice per step (heun) counts as twice as many steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from modicum.diffusion.step_cache import StepCache, StepMethod
from modicum.method import Paper
from modicum.models.dit import Block
from modicum.models.dit.transformer import modulate


class FORA(StepMethod):
    """Compute all branches every N-th step and reuse them in between, under the gates of the present step.

    k counts steps down to 0. Full: k = K - 1 and k mod N = 0. Else x <- x + g1(t) attn_kept, x <- x + g2(t) mlp_kept.
    """

    paper: ClassVar[Paper] = Paper(
        "FORA: Fast-Forward Caching in Diffusion Transformer Acceleration", "arXiv 2024", "2407.01425"
    )

    interval: int = Field(3, ge=1, description="N: one step in N computes everything; 1 is the plain sampler")

    def cache(self, passes: int) -> BranchCache:
        """An empty cache for a generation of that many passes."""
        return BranchCache(passes, self.interval)


class BranchCache(StepCache):
    """The branches of the last full pass.

    Args:
        passes: of the generation.
        interval: N.

    Attributes:
        full: whether the present pass computes everything.
        since: passes from the last full one to the present one.
    """

    def __init__(self, passes: int, interval: int) -> None:
        super().__init__(passes)
        self.interval = interval
        self.full = True
        self.since = 0
        self.branches: dict[int, list[Tensor]] = {}

    def stack(self, blocks: Sequence[Block], x: Tensor, c: Tensor) -> Tensor:
        """`x` `[B, T, D]`, `c` `[B, D]` to `[B, T, D]`."""
        self.since += 1
        self.full = self.done == 0 or (self.passes - 1 - self.done) % self.interval == 0
        for index, block in enumerate(blocks):
            shift1, scale1, gate1, shift2, scale2, gate2 = block.adaLN_modulation(c).chunk(6, dim=1)
            x = x + gate1[:, None] * self._branch(2 * index, block.attn, x, shift1, scale1)
            x = x + gate2[:, None] * self._branch(2 * index + 1, block.mlp, x, shift2, scale2)
        if self.full:
            self.since = 0
        return x

    def kept(self) -> Iterable[Tensor]:
        """Two tensors `[B, T, D]` per block."""
        return (tensor for tensors in self.branches.values() for tensor in tensors)

    def renewed(self, fresh: Tensor, before: list[Tensor]) -> list[Tensor]:
        """What is kept of a branch after a full pass, out of its output and what was kept; `fresh` comes first."""
        return [fresh]

    def recalled(self, kept: list[Tensor]) -> Tensor:
        """What stands for a branch in a pass that does not compute it, `[B, T, D]`."""
        return kept[0]

    def _branch(self, slot: int, layer: nn.Module, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        if not self.full:
            return self.recalled(self.branches[slot])
        fresh: Tensor = layer(modulate(x, shift, scale))
        self.branches[slot] = self.renewed(fresh, self.branches.get(slot, []))
        self.evaluated += 1
        return fresh
