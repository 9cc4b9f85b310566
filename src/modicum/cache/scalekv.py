"""ScaleKV: budgets by what a layer is for, tokens by what a grid of probes looks at."""

from __future__ import annotations

from dataclasses import replace
from math import isqrt, sqrt
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from modicum.allocate.cache_tokens import CacheBudget, pruned_scales, scale_aware
from modicum.cache.eviction import EvictionMethod, OddKernel, View
from modicum.cache.policy import CachePolicy, next_scale
from modicum.calibrate.selectivity import measure_selectivity
from modicum.errors import UnusableData
from modicum.kernels.eviction import attention_mass, average_pool, dots, keep_highest
from modicum.method import Context, Paper
from modicum.models.anatomy import Anatomy
from modicum.models.next_scale import Schedule

Mode = Literal["released", "paper"]
Pairs = tuple[tuple[int, int], ...]


class ScaleKV(EvictionMethod):
    """Keep much in the few layers that read all maps, little in the others, chosen by probes spread over the map.

    Layers: the (layer, map) pairs of lowest attention selectivity are drafters and keep nearly everything, the
    others, refiners, share the rest of the budget (`scale_aware`). Measured on the calibration batches unless
    `drafters` names the pairs.

    Tokens: the map is cut into g x g patches, g^2 = window, with one probe near the middle of each. For all S
    cached tokens, K as attention reads them,

        released   s_j = maxpool_kernel( sum_probes q_i k_j / sqrt(d) ),   q = W_q x, without bias, norm, rotation
        paper      s_j = avgpool_kernel( sum_probes softmax_j(q_i K^T) ),  q as in attention

    The probes stay, and beside them the highest scores; probes do not lift their neighbours when pooling. The
    released code's scores are not those of the paper. They are the default, as the published budgets and figures
    belong to them. In a map lower or narrower than g every row or column has a probe.
    """

    paper: ClassVar[Paper] = Paper(
        "Memory-Efficient Visual Autoregressive Modeling with Scale-Aware KV Cache Compression",
        "NeurIPS 2025",
        "2505.19602",
    )

    mode: Mode = Field("released", description="scores of the released code, or of the paper")
    window: int = Field(16, ge=1, description="probes per map, a square number; they stay")
    kernel: OddKernel = Field(5, description="tokens over which scores are pooled, odd; 1: none")
    drafters: int | Pairs | None = Field(
        None,
        description="how many (layer, map) pairs keep more, or which; one for every 13 layers and map by default",
    )
    floor: int | None = Field(
        None, ge=1, description="least tokens of a refiner; by default 200 of 650, at least the window"
    )

    @field_validator("window", mode="after")
    @classmethod
    def _square(cls, window: int) -> int:
        if isqrt(window) ** 2 != window:
            raise ValueError("must be a square number such as 4, 9 or 16, as probes form a grid")
        return window

    @property
    def least(self) -> int:
        return self.window

    def measures(self) -> bool:
        """Whether the drafters are found by drawing the context's batches."""
        return not isinstance(self.drafters, tuple)

    def fit(self, anatomy: Anatomy, context: Context) -> CachePolicy:
        """The policy for this model. Unless `drafters` names them, the images of `context.batches` are drawn.

        Raises:
            UnsupportedModel: the model does not draw map by map.
            InvalidSetting: the budget is below the window, or above all there is.
            UnusableData: there is something to measure and no batch to measure it with.
        """
        model = next_scale(anatomy.model)
        pruned = pruned_scales(model.schedule, self.uniform(model))
        if isinstance(self.drafters, tuple) or not pruned:
            return self.fitted(model)
        if not context.batches:
            raise UnusableData(
                "ScaleKV has no image to measure the selectivity of the layers with.",
                "Give calibration batches (keyword arguments of generate), or name the drafters.",
            )
        measured = measure_selectivity(model, context.batches, generator=context.generator)
        pairs = measured.drafters(self.drafters, scales=pruned)
        policy = self.model_copy(update={"drafters": pairs}).fitted(model)
        return replace(policy, selectivity=measured)

    def table(self, schedule: Schedule, layers: int, uniform: int) -> CacheBudget:
        """Drafters keep nearly everything at their maps, the other layers share the rest."""
        named = self.drafters if isinstance(self.drafters, tuple) else ()
        pairs = [(layer, scale) for layer, scale in named if scale < len(schedule)]
        return scale_aware(schedule, layers, uniform, pairs, window=self.window, floor=self.floor)

    def choose(self, view: View) -> Tensor:
        probes = probe_grid(view.size, isqrt(self.window), view.keys.device)
        stay = probes + view.start
        scores = (_released if self.mode == "released" else _paper)(view, probes, stay, self.kernel)
        return keep_highest(scores.index_fill(-1, stay, torch.inf), view.capacity)


def probe_grid(size: tuple[int, int], side: int, device: torch.device) -> Tensor:
    """Positions of `side` x `side` probes in a map, row by row, one near the middle of every patch.

    In a map of height h the probes lie in rows i * (h // side) + (h // side - 1) // 2; columns likewise. A map with
    fewer than `side` rows or columns has a probe in each of them.

    Args:
        size: (height, width) of the map.
        side: probes along a side, at least 1.
        device: of the result.

    Returns:
        int64 `[probes]`, ascending.
    """
    rows, columns = (_middles(extent, side, device) for extent in size)
    return (rows[:, None] * size[1] + columns).flatten()


def _middles(extent: int, parts: int, device: torch.device) -> Tensor:
    parts = min(parts, extent)
    return torch.arange(parts, device=device) * (extent // parts) + (extent // parts - 1) // 2


def _released(view: View, probes: Tensor, stay: Tensor, kernel: int) -> Tensor:
    """Scores of the released code, `[rows, heads, held]`."""
    query = view.queries.raw(probes).sum(2, keepdim=True, dtype=torch.float32)
    logits = dots(query, view.keys)[:, :, 0] / sqrt(
        query.shape[-1]
    )  # the sum over probes of q k is (sum of q) k
    return F.max_pool1d(logits.index_fill(-1, stay, -torch.inf), kernel, stride=1, padding=kernel // 2)


def _paper(view: View, probes: Tensor, stay: Tensor, kernel: int) -> Tensor:
    """Scores of the paper, `[rows, heads, held]`."""
    mass = attention_mass(view.queries.used(probes), view.keys, view.queries.scale)
    return average_pool(mass.index_fill(-1, stay, 0.0), kernel)
