"""The full cache: what the others are measured against."""

from __future__ import annotations

from typing import ClassVar

from modicum.allocate.cache_tokens import CacheBudget
from modicum.cache.policy import CacheMethod, CachePolicy, next_scale
from modicum.method import Context, Paper
from modicum.models.anatomy import Anatomy
from modicum.models.next_scale import Cache, FullCache, Schedule


class Full(CacheMethod):
    """Keep the keys and values of every earlier map.

    The images are those of the model itself, to the bit. Two savings cost nothing and are on: the last map is not
    stored, because nothing reads it, and keys are stored in the dtype in which attention reads them. With
    `store_last=True, key_dtype="computed"` memory is counted as the original models use it.
    """

    paper: ClassVar[Paper] = Paper(
        "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction",
        "NeurIPS 2024",
        "2404.02905",
    )

    def fit(self, anatomy: Anatomy, context: Context) -> CachePolicy:
        """The policy for this model.

        Raises:
            UnsupportedModel: the model does not draw map by map.
        """
        model = next_scale(anatomy.model)
        everything = model.schedule.offsets[-2]
        return CachePolicy(self, self.table(model.schedule, model.shape.layers, everything), everything)

    def table(self, schedule: Schedule, layers: int, uniform: int) -> CacheBudget:
        """Everything, whatever `uniform` is."""
        return CacheBudget.uniform(schedule, layers, schedule.total)

    def cache(self, policy: CachePolicy) -> Cache:
        """A new cache that keeps everything."""
        return FullCache(store_last=self.store_last, key_dtype=self.key_dtype)
