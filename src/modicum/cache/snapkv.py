"""SnapKV: what the newest queries look at."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from modicum.cache.eviction import EvictionMethod, OddKernel, View
from modicum.kernels.eviction import attention_mass, average_pool, keep_highest
from modicum.method import Paper


class SnapKV(EvictionMethod):
    """Keep the tokens that the last queries attend to, and the last tokens themselves.

    The T last tokens of the map (all of them in a smaller map) observe: each earlier token scores its mean
    attention from them, averaged with its neighbours,

        s_j = avgpool_kernel( 1/T sum_i softmax_j(q_i K^T) ),

    and with n tokens of budget the n - T highest scores stay beside the T observers. Chosen after every map, where
    the paper chooses once, after the prompt. Inside a map attention has no order, so unlike in the paper an
    observer also sees those after it. Every head has its own keys, so nothing is averaged over heads.
    """

    paper: ClassVar[Paper] = Paper(
        "SnapKV: LLM Knows What You are Looking for Before Generation", "NeurIPS 2024", "2404.14469"
    )

    window: int = Field(64, ge=1, description="last tokens of a map, which observe and stay")
    kernel: OddKernel = Field(5, description="tokens over which scores are averaged, odd; 1: none")

    @property
    def least(self) -> int:
        return self.window

    def choose(self, view: View) -> Tensor:
        observers = min(self.window, view.queries.tokens)
        new = torch.arange(view.queries.tokens - observers, view.queries.tokens, device=view.keys.device)
        mass = attention_mass(view.queries.used(new), view.keys, view.queries.scale) / observers
        scores = average_pool(mass[..., :-observers], self.kernel)
        return keep_highest(F.pad(scores, (0, observers), value=torch.inf), view.capacity)
