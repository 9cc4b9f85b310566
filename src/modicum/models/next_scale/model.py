"""What commands and cache policies ask of a next-scale model, whichever it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modicum.models.next_scale.cache import FullCache, KVCache
from modicum.models.next_scale.schedule import Schedule


@dataclass(frozen=True)
class AttentionShape:
    """Sizes that decide how many bytes a cached token takes.

    Attributes:
        layers: self-attention layers.
        heads: key-value heads of a layer.
        head_dim: channels of a head.
    """

    layers: int
    heads: int
    head_dim: int

    @property
    def channels(self) -> int:
        """Channels of the keys of one token in one layer."""
        return self.heads * self.head_dim


class NextScaleModel(nn.Module):
    """Base of the models that draw an image map by map: VAR, Infinity.

    Attributes:
        make_cache: makes the cache of a generation that is not given one; `caching` replaces it for a while.
        schedule: the maps of an image of the usual size.
        shape: sizes of the self-attention.
    """

    make_cache: Callable[[], KVCache]
    schedule: Schedule
    shape: AttentionShape

    def __init__(self, schedule: Schedule, shape: AttentionShape) -> None:
        super().__init__()
        self.make_cache = FullCache
        self.schedule, self.shape = schedule, shape

    def generate(self, *inputs: Any, **settings: Any) -> Tensor:
        """Images in [0, 1], float32 `[B, channels, height, width]`.

        What decides them is the model's own; every model takes `seed` and `cache` (a `KVCache`).
        """
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the transformer, in which attention runs."""
        raise NotImplementedError

    @contextmanager
    def caching(self, make_cache: Callable[[], KVCache]) -> Iterator[NextScaleModel]:
        """A context in which every generation takes its cache from `make_cache`."""
        before, self.make_cache = self.make_cache, make_cache
        try:
            yield self
        finally:
            self.make_cache = before
