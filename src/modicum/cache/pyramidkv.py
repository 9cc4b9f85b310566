"""PyramidKV: SnapKV with more tokens for the lower layers."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from modicum.allocate.cache_tokens import CacheBudget
from modicum.allocate.pyramid import pyramid
from modicum.cache.snapkv import SnapKV
from modicum.method import Paper
from modicum.models.next_scale import Schedule


class PyramidKV(SnapKV):
    """Keep what SnapKV keeps, with a budget that falls from the first layer to the last.

    Budgets beside the window T form an arithmetic sequence over the layers: the last gets (n - T) // beta, the
    first 2 (n - T) less that, so all layers together hold what they would hold with n each. The same pyramid holds
    for every map that is preceded by more than n tokens. As in the released code, the window comes on top of the
    pyramid; implementations that count it inside fall back to equal budgets where a layer would get less than T.
    """

    paper: ClassVar[Paper] = Paper(
        "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling",
        "COLM 2025",
        "2406.02069",
    )

    beta: int = Field(20, ge=1, description="how steep: the last layer's share is one in beta; 1 is flat")

    def table(self, schedule: Schedule, layers: int, uniform: int) -> CacheBudget:
        """A pyramid at every map."""
        return pyramid(schedule, layers, uniform, beta=self.beta, window=self.window)
