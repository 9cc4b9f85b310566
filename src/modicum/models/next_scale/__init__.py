"""What next-scale image models share: schedules, key-value caches, attention, sampling.

A next-scale model (VAR, Infinity) writes an image as a list of token maps of growing size. One pass predicts a
whole map at once, from all the maps before it; the token order inside a map does not exist.

    map 0   map 1    map 2
    [1x1]   [2x2]    [3x3]   ...        a token sees its own map and every earlier one
      1   +   4    +   9     tokens     (block-causal attention; the cache grows map by map)

Rows: with classifier-free guidance the batch holds the conditional rows first and as many unconditional rows
after them. Layouts: `[rows, tokens, channels]` between modules, `[rows, heads, tokens, head_dim]` in attention.
"""

from modicum.models.next_scale.attention import (
    FeedForward,
    ModulatedNorm,
    SelfAttention,
    Step,
    modulate,
    without_autocast,
)
from modicum.models.next_scale.cache import Cache, FullCache, KVCache, SelectiveCache
from modicum.models.next_scale.model import AttentionShape, NextScaleModel
from modicum.models.next_scale.queries import Queries
from modicum.models.next_scale.sampling import draw, generators, keep_top_k, keep_top_p, per_map, soft_choice
from modicum.models.next_scale.schedule import Schedule

__all__ = [
    "AttentionShape",
    "Cache",
    "FeedForward",
    "FullCache",
    "KVCache",
    "ModulatedNorm",
    "NextScaleModel",
    "Queries",
    "Schedule",
    "SelectiveCache",
    "SelfAttention",
    "Step",
    "draw",
    "generators",
    "keep_top_k",
    "keep_top_p",
    "modulate",
    "per_map",
    "soft_choice",
    "without_autocast",
]
