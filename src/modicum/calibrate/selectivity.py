"""Which layers of a next-scale model read the whole history: the Attention Selectivity Index of ScaleKV.

A layer that attends to the map it is drawing and to a few tokens of the past needs a small cache; one that spreads
its attention over all earlier maps needs a large one. The index (Li et al., NeurIPS 2025, arXiv 2505.19602, eq. 2)
of layer l at map k is the product of two means over the queries i of the map,

    ASI(l, k) = mean_i( sum of a_ij over j in the map itself ) * mean_i( sum of the K' largest a_ij over j before it )

with a_ij the attention probabilities. Low means: little attention to the map itself, none of it concentrated. The
index is standardised over the layers of each map; the pairs (layer, map) that lie lowest are the drafters, all
others the refiners.

The paper leaves open how queries are drawn, K', and the number of drafters; its code is not released. Here: a
seeded sample of the map's positions, the same for all layers; K' = a tenth of the history, at most 64; the mean over
rows, heads and prompts of the product per row and head; and as many drafters as one for every 13 layers at every map.
That is 15 for Infinity-8B, as in its released budget file, and 10 for 2B, whose file has 9. Below 7 layers it is none:
a drafter that keeps everything would take more from each of its few companions than it gains.

The attention matrix never exists: of a bounded number of queries at a time, logits are reduced to the logarithm of
their sum of exponentials and to their K' largest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modicum.errors import CheckpointError, InvalidSetting, UnusableData
from modicum.models.next_scale import FullCache, NextScaleModel, Queries, Schedule
from modicum.models.next_scale.cache import KeysValues

EPS = 1e-6
LARGEST_TOP = 64
LAYERS_PER_DRAFTER = 13
LOGIT_BYTES = 64 << 20  # of the logits that are looked at together
FORMAT = 1


@dataclass(frozen=True)
class Selectivity:
    """Attention Selectivity Index of every layer at every map.

    Attributes:
        asi: float64 `[layers, maps]`; 0 at map 0, which has no history.
    """

    asi: Tensor

    @property
    def z(self) -> Tensor:
        """The index, standardised over the layers of each map, `[layers, maps]`; low for drafters."""
        deviation = self.asi - self.asi.mean(dim=0)
        return deviation / (self.asi.std(dim=0, correction=0) + EPS)

    def drafters(
        self, count: int | None = None, scales: Collection[int] | None = None
    ) -> tuple[tuple[int, int], ...]:
        """The (layer, map) pairs of lowest z, sorted; equal ones go to the lower layer, then the lower map.

        Args:
            count: how many; by default one for every 13 layers and map, rounded: none below 7 layers.
            scales: maps that come into question: those that a budget prunes. All but the first by default.

        Raises:
            InvalidSetting: more drafters than pairs, or a map that the model does not have.
        """
        layers, maps = self.asi.shape
        chosen = sorted(range(1, maps) if scales is None else scales)
        if not set(chosen) <= set(range(1, maps)):
            raise InvalidSetting(
                f"Maps {chosen} cannot all have drafters.", f"The maps with a history are 1 to {maps - 1}."
            )
        pairs = [(layer, scale) for layer in range(layers) for scale in chosen]
        count = round(layers / LAYERS_PER_DRAFTER) * len(chosen) if count is None else count
        if not 0 <= count <= len(pairs):
            raise InvalidSetting(
                f"{count} drafters of {len(pairs)} pairs of layer and map are not possible.",
                f"Choose 0 to {len(pairs)}.",
            )
        lowest = self.z[:, chosen].flatten().argsort(stable=True)[:count]
        return tuple(sorted(pairs[index] for index in lowest.tolist()))

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads."""
        return {"format": FORMAT, "asi": self.asi.tolist()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Selectivity:
        """The inverse of `to_json`.

        Raises:
            CheckpointError: not what `to_json` wrote.
        """
        try:
            asi = torch.tensor(data["asi"], dtype=torch.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"This is no table of selectivity: {error}", "Measure it again.") from error
        if data.get("format") != FORMAT or asi.dim() != 2 or not asi.isfinite().all():
            raise CheckpointError(
                f"The table of selectivity has format {data.get('format')!r} and shape {list(asi.shape)}.",
                f"modicum reads format {FORMAT}, [layers, maps]; measure it again.",
            )
        return cls(asi)


@torch.no_grad()
def measure_selectivity(
    model: NextScaleModel,
    batches: Sequence[Mapping[str, Any]],
    *,
    top: int | None = None,
    queries: int = 64,
    generator: torch.Generator,
) -> Selectivity:
    """Draw the images of all batches with the full cache and watch the attention.

    Args:
        model: VAR, Infinity.
        batches: keyword arguments of `model.generate`; one prompt is enough for a stable order of the layers.
        top: K', the history tokens whose attention counts as concentrated; by default a tenth of the history,
            at most 64.
        queries: positions of each map that are looked at.
        generator: draws these positions.

    Raises:
        UnusableData: no batch.
        InvalidSetting: `top` or `queries` below 1, or batches of different schedules.
    """
    if not batches:
        raise UnusableData("There is no prompt to measure selectivity with.", "Give at least one batch.")
    if queries < 1 or (top is not None and top < 1):
        raise InvalidSetting(f"top is {top}, queries is {queries}.", "Give 1 or more.")
    if any("cache" in batch for batch in batches):
        raise InvalidSetting(
            "A batch brings its own cache.", "Leave `cache` out; the attention is watched in one."
        )
    watch = _Watch(model, top, queries, generator)
    with model.caching(lambda: watch):
        for batch in batches:
            model.generate(**batch)
    return Selectivity(watch.mean())


def attention_parts(query: Tensor, keys: Tensor, new: int, top: int) -> tuple[Tensor, Tensor]:
    """How much attention stays in the map itself, and how much its favourites of the history get.

    Args:
        query: float32 `[..., q, d]`, softmax scale included.
        keys: float32 `[..., S, d]`, history first.
        new: tokens of the map itself, the last of the keys.
        top: K', at most `S - new`.

    Returns:
        Sums of probabilities, `[..., q]` each.
    """
    logits = query @ keys.mT  # [..., q, S]
    total = logits.logsumexp(dim=-1)
    current = logits[..., -new:].logsumexp(dim=-1) - total
    favourites = logits[..., :-new].topk(top).values.logsumexp(dim=-1) - total
    return current.exp(), favourites.exp()


class _Watch(FullCache):
    """A full cache that notes the index of every layer and map as the model runs."""

    def __init__(
        self, model: NextScaleModel, top: int | None, queries: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self._layers, self._device = model.shape.layers, next(model.parameters()).device
        self._top, self._queries, self._generator = top, queries, generator
        self._visible: dict[int, Tensor] = {}  # keys that the running attention sees
        self._positions: list[Tensor] = []
        self._sums = self._rows = torch.empty(0)  # of the index over rows, and how many, [layers, maps]

    def begin(self, schedule: Schedule) -> None:
        """A generation starts: draw the positions to look at."""
        if self._schedule is None:
            self._sums = torch.zeros(self._layers, len(schedule), device=self._device)
            self._rows = torch.zeros_like(self._sums)
        elif self._schedule != schedule:
            raise InvalidSetting(
                "The batches draw images of different shapes.",
                "Measure one shape at a time: its maps differ.",
            )
        super().begin(schedule)
        self._positions = [
            torch.randperm(count, generator=self._generator, device=self._generator.device)[: self._queries]
            for count in schedule.tokens
        ]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        """Take the next map of a layer; remember what its queries see, also of the last map."""
        visible = super().extend(layer, keys, values)
        self._visible[layer] = visible[0]
        return visible

    def settle(self, layer: int, scale: int, queries: Queries) -> None:
        """Attention is done: add up the index."""
        keys = self._visible.pop(layer)
        if scale == 0:
            return
        index = self._index(scale, queries, keys.float())  # [rows]
        self._sums[layer, scale] += index.sum()
        self._rows[layer, scale] += len(index)

    def mean(self) -> Tensor:
        """The index, float64 `[layers, maps]`."""
        return (self._sums / self._rows.clamp_min(1)).double().cpu()

    def _index(self, scale: int, queries: Queries, keys: Tensor) -> Tensor:
        """`[rows]`: the product of both means over the sampled queries, averaged over heads."""
        history = self.schedule.offsets[scale]
        top = min(history, self._top or max(1, min(LARGEST_TOP, history // 10)))
        positions = self._positions[scale].to(keys.device)
        query_bytes = keys.shape[0] * keys.shape[1] * keys.shape[2] * keys.element_size()
        parts = [
            attention_parts(queries.used(some).float() * queries.scale, keys, queries.tokens, top)
            for some in positions.split(max(1, LOGIT_BYTES // query_bytes))
        ]
        current, favourites = (torch.cat(part, dim=-1).mean(dim=-1) for part in zip(*parts, strict=True))
        return (current * favourites).mean(dim=1)
