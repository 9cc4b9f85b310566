"""The parts of a transformer block that next-scale models have in common; parameter names are the original ones.

Legend: R rows, L tokens, C channels, H heads, d = C / H.

Attention over unit vectors: queries and keys are divided by their norm (in float32), and a learned temperature
per head, `exp(min(s, ln 100))`, takes the place of `1 / sqrt(d)`. Adaptive layer norm: a vector of the condition
(class or text) scales, shifts and gates what goes through a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.models.next_scale.cache import KVCache
from modicum.models.next_scale.queries import Queries

LARGEST_TEMPERATURE = math.log(100)


@dataclass(frozen=True)
class Step:
    """What attention has to know beside its input: one value serves all blocks of one pass.

    Attributes:
        scale: index of the map, in a pass over one map.
        cache: of the running generation; None in a pass over all maps at once.
        mask: bool or additive, broadcastable to `[R, H, L, L]`, in a pass over all maps at once.
        rotate: applied to queries and keys `[R, H, L, d]` after their norm (rotary positions).
    """

    scale: int = 0
    cache: KVCache | None = None
    mask: Tensor | None = None
    rotate: Callable[[Tensor], Tensor] | None = None


class SelfAttention(nn.Module):
    """Multi-head attention over the maps so far.

    Args:
        layer: index by which the cache knows it.
        width: C.
        heads: H.
        l2_norm: unit queries and keys with a learned temperature per head.
        scale: softmax scale without l2 norm.
    """

    scale_mul_1H11: nn.Parameter
    zero_k_bias: Tensor

    def __init__(
        self, layer: int, width: int, heads: int, *, l2_norm: bool = True, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.layer, self.width, self.heads, self.l2_norm = layer, width, heads, l2_norm
        self.scale = 1.0 if l2_norm else scale
        if l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4)))
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """`[R, L, C] -> [R, L, C]`."""
        query, key, value = self.mat_qkv(x).chunk(3, dim=-1)
        q = self._normed(self._heads(query + self.q_bias), temperature=True)  # [R, H, L, d]
        k = self._normed(self._heads(key), temperature=False)
        v = self._heads(value + self.v_bias).to(query.dtype)
        if step.rotate is not None:
            q, k = step.rotate(q), step.rotate(k)
        q, keys, values = q.to(v.dtype), k, v
        if step.cache is not None:
            keys, values = step.cache.extend(self.layer, k, v)
        mixed = F.scaled_dot_product_attention(q, keys.to(v.dtype), values, step.mask, scale=self.scale)
        if step.cache is not None:
            step.cache.settle(self.layer, step.scale, Queries(x, self._project, q, self.scale))
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def _normed(self, x: Tensor, *, temperature: bool) -> Tensor:
        if not self.l2_norm:
            return x
        unit = F.normalize(x.float(), dim=-1)
        return (
            unit * self.scale_mul_1H11.float().clamp_max(LARGEST_TEMPERATURE).exp() if temperature else unit
        )

    def _project(self, x: Tensor) -> Tensor:
        if (
            type(self.mat_qkv) is nn.Linear
        ):  # its upper third alone; a compressed matrix multiplies as a whole
            return self._heads(F.linear(x, self.mat_qkv.weight[: self.width]))
        return self._heads(self.mat_qkv(x)[..., : self.width])

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [R, H, L, d]


class FeedForward(nn.Module):
    """Two linear layers with the tanh form of GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[R, L, C] -> [R, L, C]`."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class ModulatedNorm(nn.Module):
    """Layer norm whose scale and shift come from the condition, before the head."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`x` `[R, L, C]`, `condition` `[R, C]`."""
        scale, shift = self.ada_lin(condition)[:, None].chunk(2, dim=-1)  # [R, 1, C] each
        return modulate(x, scale, shift, self.eps)


def modulate(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Layer norm without parameters, then `* (1 + scale) + shift`; `[R, L, C]` with `[R, 1, C]` twice."""
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """A context in which operations run in the dtype of their inputs, for the head."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
