"""H2O: the tokens that have drawn most attention so far, and the newest."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from modicum.cache.eviction import EvictingCache, EvictionMethod, View
from modicum.cache.policy import CachePolicy
from modicum.kernels.eviction import attention_mass, keep_highest
from modicum.method import Paper
from modicum.models.next_scale import Cache, Queries, Schedule


class H2O(EvictionMethod):
    """Keep the tokens with the most accumulated attention (heavy hitters) and as many of the newest.

    A_j adds up the attention that token j got from every query of every map so far. With n tokens of budget the
    last n // 2 stay, and of the others those with the highest A. A dropped token's sum is forgotten. The paper
    evicts one token per generated token; here a whole map arrives at once, and the surplus goes at once.

    Unlike the others this looks at all queries of a map, which costs as much as the attention itself.
    """

    paper: ClassVar[Paper] = Paper(
        "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
        "NeurIPS 2023",
        "2306.14048",
    )

    @property
    def least(self) -> int:
        return 2

    def choose(self, view: View) -> Tensor:
        """The choice from the attention over this map alone; the cache adds up that of all maps."""
        mass = attention_mass(view.queries.used(), view.keys, view.queries.scale)
        return heavy_and_recent(mass, view.capacity)

    def cache(self, policy: CachePolicy) -> Cache:
        """A new cache that adds up attention."""
        return HeavyHitterCache(
            policy.table, self.choose, store_last=self.store_last, key_dtype=self.key_dtype
        )


class HeavyHitterCache(EvictingCache):
    """Adds up the attention of every held token, `[rows, heads, held]` per layer."""

    _mass: dict[int, Tensor]

    def begin(self, schedule: Schedule) -> None:
        """Forget everything: a generation over this schedule starts."""
        super().begin(schedule)
        self._mass = {}

    def cut(self, layer: int, scale: int, queries: Queries) -> None:
        """Add the attention of this map's queries, then drop what does not fit."""
        mass = attention_mass(queries.used(), self.held(layer)[0], queries.scale)
        if layer in self._mass:
            mass += F.pad(self._mass[layer], (0, queries.tokens))
        self._mass[layer] = mass
        super().cut(layer, scale, queries)

    def choose(self, layer: int, view: View) -> Tensor:
        """Positions of a layer that stay."""
        return heavy_and_recent(self._mass[layer], view.capacity)

    def keep(self, layer: int, index: Tensor) -> None:
        """Carry only these entries, and their sums."""
        super().keep(layer, index)
        self._mass[layer] = self._mass[layer].gather(-1, index)


def heavy_and_recent(mass: Tensor, count: int) -> Tensor:
    """The last `count // 2` positions and the heaviest of the others, ascending.

    Args:
        mass: `[rows, heads, held]`.
        count: 2 to held.

    Returns:
        int64 `[rows, heads, count]`.
    """
    recent = count // 2
    return keep_highest(F.pad(mass[..., :-recent], (0, recent), value=torch.inf), count)
