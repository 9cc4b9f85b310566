"""Base of the policies that drop cached tokens: they say which, this file says when and how many.

Once a layer's attention over a map is done, it may carry a limited number of tokens into the next map. If it holds
more, the policy chooses, for every row and head on its own, and the chosen keys and values are copied:

    map k:  [ history | new tokens ]  --attention sees all-->  choose  -->  [ history of map k + 1 ]

Nothing is moved or rotated anew: the positions are part of the keys, in VAR through the embedding of the token, in
Infinity through the rotation. The last map is not stored, so nothing is chosen after it; with `store_last` it is
stored and cut back once more, to what was carried into it, as the released ScaleKV does.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import AfterValidator, Field, field_validator
from torch import Tensor

from modicum.allocate.cache_size import parse_budget
from modicum.allocate.cache_tokens import CacheBudget
from modicum.cache.policy import CacheMethod, CachePolicy, next_scale
from modicum.errors import ModicumError
from modicum.method import Context
from modicum.models.anatomy import Anatomy
from modicum.models.next_scale import Cache, NextScaleModel, Queries, Schedule, SelectiveCache
from modicum.models.next_scale.cache import KeyDtype


@dataclass(frozen=True)
class View:
    """What a policy sees of a layer when it has to choose.

    Attributes:
        keys: `[rows, heads, held, head_dim]`, history first, the tokens of the map last, row by row.
        queries: of the map's tokens.
        size: (height, width) of the map.
        capacity: how many tokens stay, fewer than are held.
    """

    keys: Tensor
    queries: Queries
    size: tuple[int, int]
    capacity: int

    @property
    def held(self) -> int:
        """Tokens in the cache."""
        return self.keys.shape[2]

    @property
    def start(self) -> int:
        """Where the map's own tokens begin in the cache."""
        return self.held - self.queries.tokens

    def everywhere(self, positions: Tensor) -> Tensor:
        """The same positions `[capacity]` for every row and head, `[rows, heads, capacity]`."""
        return positions.expand(*self.keys.shape[:2], -1)


def _odd(kernel: int) -> int:
    if kernel % 2 == 0:
        raise ValueError("must be odd, so that a token lies in the middle of its neighbours")
    return kernel


OddKernel = Annotated[int, Field(ge=1), AfterValidator(_odd)]
"""Tokens over which scores are pooled."""

Choose = Callable[[View], Tensor]
"""Positions that stay, int64 `[rows, heads, capacity]`, ascending."""


class EvictingCache(SelectiveCache):
    """Cuts every layer back to its budget after each map.

    Args:
        table: the budget for a schedule.
        choose: the policy.
        store_last: see `Cache`.
        key_dtype: see `Cache`.
    """

    def __init__(
        self,
        table: Callable[[Schedule], CacheBudget],
        choose: Choose,
        *,
        store_last: bool = False,
        key_dtype: KeyDtype = "attention",
    ) -> None:
        super().__init__(store_last=store_last, key_dtype=key_dtype)
        self._table, self._choose = table, choose
        self._budget: CacheBudget | None = None

    def begin(self, schedule: Schedule) -> None:
        """Forget everything: a generation over this schedule starts."""
        super().begin(schedule)
        self._budget = self._table(schedule)

    def settle(self, layer: int, scale: int, queries: Queries) -> None:
        """Attention over map `scale` is done: drop what does not fit into the budget."""
        if self.stores(scale):
            self.cut(layer, scale, queries)

    def stores(self, scale: int) -> bool:
        """Whether the map was stored."""
        return self.store_last or scale < len(self.schedule) - 1

    def cut(self, layer: int, scale: int, queries: Queries) -> None:
        """Carry what the policy chooses to the next map; everything, if that is not too much."""
        assert self._budget is not None  # begin() comes before any map
        capacity = self._budget.carried(layer, min(scale + 1, len(self.schedule) - 1))
        if self.length(layer) > capacity:
            view = View(self.held(layer)[0], queries, self.schedule.sizes[scale], capacity)
            self.keep(layer, self.choose(layer, view))

    def choose(self, layer: int, view: View) -> Tensor:
        """Positions of a layer that stay, int64 `[rows, heads, capacity]`, ascending."""
        return self._choose(view)


class EvictionMethod(CacheMethod):
    """Base of the methods that keep a limited number of tokens."""

    budget: str = Field(
        "10%",
        description="tokens per layer (650), share of all tokens before the last map (10%), or bytes (8GB)",
    )
    rows: int = Field(
        2, ge=1, description="images at once, times two with guidance; only a budget in bytes depends on it"
    )

    @field_validator("budget", mode="after")
    @classmethod
    def _readable(cls, text: str) -> str:
        try:
            parse_budget(text)
        except ModicumError as error:
            raise ValueError(str(error)) from error
        return text

    @abstractmethod
    def choose(self, view: View) -> Tensor:
        """Which tokens of a layer stay, int64 `[rows, heads, capacity]`, ascending; a pure function."""

    def fit(self, anatomy: Anatomy, context: Context) -> CachePolicy:
        """The policy for this model; no data is needed.

        Raises:
            UnsupportedModel: the model does not draw map by map.
            InvalidSetting: the budget is below what stays in any case, or above all there is.
        """
        return self.fitted(next_scale(anatomy.model))

    def fitted(self, model: NextScaleModel) -> CachePolicy:
        """The policy for this model with the settings as they are."""
        uniform = self.uniform(model)
        return CachePolicy(self, self.table(model.schedule, model.shape.layers, uniform), uniform)

    def uniform(self, model: NextScaleModel) -> int:
        """Tokens per layer that the budget pays for."""
        key = torch.float32 if self.key_dtype == "computed" else model.dtype
        budget = parse_budget(self.budget)
        return budget.tokens(model.schedule, model.shape, self.rows, key, model.dtype, window=self.least)

    def table(self, schedule: Schedule, layers: int, uniform: int) -> CacheBudget:
        """The same for every layer."""
        return CacheBudget.uniform(schedule, layers, uniform)

    def cache(self, policy: CachePolicy) -> Cache:
        """A new cache that follows `policy`."""
        return EvictingCache(policy.table, self.choose, store_last=self.store_last, key_dtype=self.key_dtype)
