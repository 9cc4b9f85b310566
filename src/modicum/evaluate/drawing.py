"""Drawing images with a next-scale model, and watching its key-value cache while it draws.

The cache is watched from inside: a thin wrapper passes every call on, and once the last layer is done with a map it
notes how many bytes the layers carry to the next one. So the numbers are those of the tensors that were held,
whichever policy dropped the others, and the same wrapper tells how far the drawing is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from modicum.errors import InvalidSetting
from modicum.evaluate.inference import device_of
from modicum.models.next_scale import Cache, KVCache, NextScaleModel, Queries, Schedule
from modicum.models.next_scale.cache import KeysValues

MapProgress = Callable[[int, int], None]
"""Called with the number of maps that are done, and of all maps."""


class WatchedCache:
    """A cache that counts what another one carries from map to map.

    Args:
        inner: the cache that does the work.
        layers: number of layers; a map is done when the last one is.
        progress: told whenever a map is done.
    """

    def __init__(self, inner: Cache, layers: int, progress: MapProgress) -> None:
        self.inner, self.layers, self.progress = inner, layers, progress
        self.carried: list[int] = []  # bytes that all layers hold for map 1, 2, ...
        self._maps = 0

    def begin(self, schedule: Schedule) -> None:
        """Forget everything: a generation over this schedule starts."""
        self.carried.clear()
        self._maps = len(schedule)
        self.inner.begin(schedule)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        """Take the next map of a layer and return all keys and values that its queries see."""
        return self.inner.extend(layer, keys, values)

    def settle(self, layer: int, scale: int, queries: Queries) -> None:
        """Called once attention over map `scale` is done in this layer."""
        self.inner.settle(layer, scale, queries)
        if layer == self.layers - 1:
            if scale + 1 < self._maps:
                self.carried.append(self.inner.nbytes)
            self.progress(scale + 1, self._maps)


@dataclass(frozen=True)
class Drawing:
    """Images and what drawing them took.

    Attributes:
        images: float32 `[B, C, H, W]` in [0, 1], on the CPU.
        seconds: of each batch.
        carried: most bytes of keys and values that any batch carried into map 1, 2, ...
        peak_bytes: most bytes that a cache held at once, old and new tensors of a copy together.
    """

    images: Tensor
    seconds: tuple[float, ...]
    carried: tuple[int, ...]
    peak_bytes: int

    @property
    def carried_bytes(self) -> int:
        """Most bytes of keys and values that were carried from one map to the next."""
        return max(self.carried, default=0)


@dataclass(frozen=True)
class Request:
    """What is to be drawn: inputs and a seed per image, and settings for all of them.

    Attributes:
        inputs: arguments of the model's `generate` with one entry per image, such as labels.
        captions: what each image is to show, for people.
        schedule: maps of each image.
        seeds: one per image.
        settings: further arguments of `generate`, the same for all images.
        at_once: images per batch.
        pack: turns the inputs of a batch from lists into what `generate` takes.

    Raises:
        InvalidSetting: no image at all, or inputs of another number than there are seeds.
    """

    inputs: Mapping[str, Sequence[Any]]
    captions: tuple[str, ...]
    schedule: Schedule
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    at_once: int = 8
    pack: Callable[[list[Any]], Any] = list

    def __post_init__(self) -> None:
        if not self.seeds or self.at_once < 1:
            raise InvalidSetting(
                f"{len(self.seeds)} images are to be drawn, {self.at_once} at once.", "Ask for 1 or more."
            )
        for name, entries in {**self.inputs, "captions": self.captions}.items():
            if len(entries) != len(self.seeds):
                raise InvalidSetting(
                    f"There are {len(entries)} {name} for {len(self.seeds)} images.", "Give one per image."
                )

    def batches(self) -> list[dict[str, Any]]:
        """Arguments of `generate`, batch by batch; the seed is one per image."""
        parts = range(0, len(self.seeds), self.at_once)
        return [self.part(slice(start, start + self.at_once)) for start in parts]

    def part(self, images: slice) -> dict[str, Any]:
        """Arguments of `generate` for some of the images."""
        chosen = {name: self.pack(list(entries[images])) for name, entries in self.inputs.items()}
        return {**chosen, "seed": list(self.seeds[images]), **self.settings}


def draw_request(
    model: NextScaleModel, batches: Iterable[dict[str, Any]], progress: MapProgress = lambda done, of: None
) -> Drawing:
    """Draw batches under whatever cache policy is attached to the model.

    Args:
        model: in evaluation mode.
        batches: arguments of `model.generate`, without a cache.
        progress: told after every map of every batch.
    """
    images, seconds, carried, peak = [], [], [0], 0
    device = device_of(model)
    for batch in batches:
        cache = watched(model, progress)
        start = _now(device)
        drawn = model.generate(**batch, cache=cache)
        seconds.append(_now(device) - start)
        images.append(drawn.float().cpu())
        carried = _largest(carried, cache.carried)
        peak = max(peak, cache.inner.peak_nbytes)
    return Drawing(torch.cat(images), tuple(seconds), tuple(carried), peak)


def watched(model: NextScaleModel, progress: MapProgress) -> WatchedCache:
    """A cache as the model would make it itself, watched.

    Raises:
        InvalidSetting: the attached policy makes a cache that does not count its bytes.
    """
    inner: KVCache = model.make_cache()
    if not isinstance(inner, Cache):
        raise InvalidSetting(
            f"{type(inner).__name__} does not say how many bytes it holds.",
            "Derive it from modicum.models.next_scale.Cache.",
        )
    return WatchedCache(inner, model.shape.layers, progress)


def _largest(known: Sequence[int], new: Sequence[int]) -> list[int]:
    length = max(len(known), len(new))
    padded = [[*row, *[0] * (length - len(row))] for row in (known, new)]
    return [max(pair) for pair in zip(*padded, strict=True)]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()
