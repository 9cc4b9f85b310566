"""Sliding window: only the newest tokens."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from modicum.cache.eviction import EvictionMethod, View
from modicum.method import Paper


class Sliding(EvictionMethod):
    """Keep the last tokens of the cache.

    With n tokens of budget, positions S - n .. S - 1 of S stay. The cache is in the order of time, and inside a map
    row by row, so a small budget holds the lower part of the map just drawn and nothing of the earlier ones.
    """

    paper: ClassVar[Paper] = Paper("Longformer: The Long-Document Transformer", "arXiv 2020", "2004.05150")

    def choose(self, view: View) -> Tensor:
        last = torch.arange(view.held - view.capacity, view.held, device=view.keys.device)
        return view.everywhere(last)
