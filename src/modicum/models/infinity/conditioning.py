"""How text enters the transformer: pooled into one vector, and token by token through cross-attention.

Legend: R rows (images, with guidance twice), T text tokens, C channels, H heads, d = C / H.

    t       = RMSNorm(features)
    pooled  = attention of one learned query per head over t       -> first token, adaptive norms
    context = Linear(GELU(Linear(t)))                               -> keys and values of every block

Rows have texts of different lengths; they are padded, and padding is masked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.models.next_scale.cache import KeysValues


@dataclass(frozen=True)
class Condition:
    """What the blocks are told about the text: one value serves all blocks and maps of an image.

    Attributes:
        pooled: `[R, C]`.
        modulation: shared part of the adaptive norms, `[R, 1, 6, C]`.
        context: `[R, T, C]`.
        mask: bool `[R, 1, 1, T]`, False at padding; None if there is none.
        kept: keys and values of the context for every block; None to compute them again at every map.
        rounded: queries, keys and values of text are rounded to bfloat16.
    """

    pooled: Tensor
    modulation: Tensor
    context: Tensor
    mask: Tensor | None = None
    kept: Sequence[KeysValues] | None = None
    rounded: bool = False


class TextAttention(nn.Module):
    """Attention to text. Keys and values depend on the text alone, so they are apart from the queries.

    Args:
        width: C.
        text_width: channels of the text.
        heads: H.
    """

    def __init__(self, width: int, text_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mat_kv = nn.Linear(text_width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def keys_values(self, text: Tensor) -> KeysValues:
        """`[R, T, text channels]` to keys and values `[R, H, T, d]`."""
        key, value = self.mat_kv(text.to(self.v_bias.dtype)).chunk(2, dim=-1)
        return self.split(key), self.split(value + self.v_bias)

    def attend(self, q: Tensor, text: KeysValues, mask: Tensor | None, rounded: bool) -> Tensor:
        """`[R, L, C]` of queries `[R, H, L, d]`, keys and values `[R, H, T, d]`."""
        k, v = text
        if rounded:
            q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
        mixed = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, mask)
        return self.proj(mixed.transpose(1, 2).flatten(2).to(self.v_bias.dtype))

    def split(self, x: Tensor) -> Tensor:
        """`[R, L, C] -> [R, H, L, d]`."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class AttentionPool(TextAttention):
    """One vector of a text: every head has one learned query."""

    def __init__(self, width: int, text_width: int, heads: int) -> None:
        super().__init__(width, text_width, heads)
        self.mat_q = nn.Parameter(torch.randn(1, heads, width // heads) / math.sqrt(3 * width))

    def forward(self, text: Tensor, mask: Tensor | None, rounded: bool = False) -> Tensor:
        """`[R, T, text channels] -> [R, C]`."""
        q = self.mat_q[:, :, None].expand(len(text), -1, -1, -1)  # [R, H, 1, d]
        return self.attend(q, self.keys_values(text), mask, rounded)[:, 0]


class CrossAttention(TextAttention):
    """Every token of a map looks at the text."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, width, heads)
        self.mat_q = nn.Linear(width, width)

    def forward(self, x: Tensor, text: KeysValues, mask: Tensor | None, rounded: bool = False) -> Tensor:
        """`[R, L, C]` to the same shape."""
        return self.attend(self.split(self.mat_q(x)), text, mask, rounded)
