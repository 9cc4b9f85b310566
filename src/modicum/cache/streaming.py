"""StreamingLLM: the first tokens and the newest ones."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from modicum.cache.eviction import EvictionMethod, View
from modicum.method import Paper


class Streaming(EvictionMethod):
    """Keep the first few tokens, which attention uses as a sink, and the last ones.

    With n tokens of budget, positions 0 .. sinks - 1 and S - (n - sinks) .. S - 1 of S stay. The first tokens of a
    next-scale model are its coarsest maps. The paper counts positions anew inside the cache; here a token keeps
    the place in the image that its key was made with.
    """

    paper: ClassVar[Paper] = Paper(
        "Efficient Streaming Language Models with Attention Sinks", "ICLR 2024", "2309.17453"
    )

    sinks: int = Field(4, ge=0, description="tokens that stay at the beginning")

    @property
    def least(self) -> int:
        return self.sinks + 1

    def choose(self, view: View) -> Tensor:
        device, recent = view.keys.device, view.capacity - self.sinks
        first = torch.arange(self.sinks, device=device)
        last = torch.arange(view.held - recent, view.held, device=device)
        return view.everywhere(torch.cat((first, last)))
