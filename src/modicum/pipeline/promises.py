"""What holds for which layer: by modicum.json when a model arrives, by the steps of a recipe afterwards.

A pruned model says in modicum.json which layers have an exact zero mask. A later run begins with that: layer steps see
the zeros, training over the whole model holds them, and both are verified in the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from modicum.errors import CheckpointError, NotFinite
from modicum.formats.manifest import Manifest
from modicum.kernels.checks import all_finite
from modicum.kernels.packing import pack_mask, unpack_mask
from modicum.method import Method
from modicum.models import Anatomy, Layer
from modicum.pipeline.composition import live_properties
from modicum.pipeline.sweep import Steps, check_promise, touching
from modicum.weights.dense import DenseWeight
from modicum.weights.properties import BlockPattern, IntegerGrid, NMPattern, Property, ZeroMask

Promised = Mapping[str, frozenset[Property]]
"""The properties of layers, by name."""


_SIDE = r"([1-9]\d{0,3})"
_BLOCKS = rf"zeros in (0\.\d+|\d(?:\.\d+)?e-\d+) of its (?:{_SIDE}x{_SIDE} blocks|rows)"


def recorded(manifest: Manifest | None) -> dict[str, frozenset[Property]]:
    """What modicum.json promises; nothing for a model that modicum did not make."""
    promises = manifest.promises if manifest is not None else {}
    return {name: frozenset(filter(None, map(property_named, words))) for name, words in promises.items()}


def in_words(promised: Promised) -> dict[str, list[str]]:
    """The properties as modicum.json says them; `recorded` gives them back."""
    return {name: [held.name for held in sorted(promises, key=str)] for name, promises in promised.items()}


def property_named(words: str) -> Property | None:
    """The property that calls itself so; None for one that this version does not know."""
    if found := re.fullmatch(r"a (\d+):(\d+) pattern", words):
        return NMPattern(int(found[1]), int(found[2]))
    if found := re.fullmatch(r"a (\d+)-bit integer grid", words):
        return IntegerGrid(int(found[1]))
    if found := re.fullmatch(_BLOCKS, words):
        rows, columns = (int(found[2]), int(found[3])) if found[2] else (1, None)
        return BlockPattern(rows, columns, float(found[1]))
    return ZeroMask() if words == ZeroMask().name else None


def live_of(steps: Steps, layers: Iterable[Layer], start: Promised) -> dict[str, list[frozenset[Property]]]:
    """For each layer that a step touches: what holds before the first of its steps, and after each.

    Raises:
        RecipeConflict: steps that cannot follow each other on some layer, or what it arrives with.
    """
    live = {}
    for layer in layers:
        if touched_by := touching(steps, layer):
            held = start.get(layer.name, frozenset())
            live[layer.name] = [held, *live_properties(touched_by, held)]
    return live


def promised_by(steps: Steps, layers: Iterable[Layer], start: Promised) -> dict[str, frozenset[Property]]:
    """What holds for the layers when all steps have run."""
    return {**start, **{name: live[-1] for name, live in live_of(steps, layers, start).items()}}


class Zeros:
    """Which weights are zero, one bit for each, so that what comes after can be held against it.

    Args:
        anatomy: of the model as it is now.
        promised: the properties of its layers.

    Raises:
        CheckpointError: a layer does not have what is promised.
    """

    def __init__(self, anatomy: Anatomy, promised: Promised) -> None:
        self.promised = {name: held for name, held in promised.items() if ZeroMask() in held}
        self.kept: dict[str, Tensor] = {}  # packed bits, 1: not zero
        for layer in self._layers(anatomy):
            weight = layer.weight.detach()
            for promise in self.promised[layer.name]:
                if promise.violation(weight, DenseWeight.from_dense(weight)):
                    raise CheckpointError(
                        f"modicum.json promises {promise.name} of {layer.name}, which its weights do not have.",
                        "Weights and modicum.json belong to different models; copy the checkpoint again.",
                    )
            self.kept[layer.name] = pack_mask(weight != 0)

    def verify(self, step: Method, anatomy: Anatomy) -> None:
        """Hold the model after a step against what was promised.

        Raises:
            PromiseBroken: names the step, the layer and the property.
            NotFinite: a layer holds NaN or infinity.
        """
        for layer in self._layers(anatomy):
            weight = layer.weight.detach()
            if not all_finite(weight):
                raise NotFinite(f"{step.name} made NaN or infinity at {layer.name}.", "Lower its lr.")
            before = unpack_mask(self.kept[layer.name], layer.in_features)
            for promise in self.promised[layer.name]:
                check_promise(step, layer, promise, before, DenseWeight.from_dense(weight))

    def _layers(self, anatomy: Anatomy) -> list[Layer]:
        return [layer for layer in anatomy.layers() if layer.name in self.promised] if self.promised else []
