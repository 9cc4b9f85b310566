"""Training that leaves a mask alone: a weight that is zero stays zero, exactly.

The gradient of such a weight is cut to zero as soon as it is there, before gradients are added up, clipped or counted.
From then on everything about the weight is zero: both moments of Adam (so its step, 0 / (sqrt(0) + eps), is too), its
decay (w shrinks by a factor) and its moving average. The mask is read off the weights when a gradient arrives: nothing
is stored beside them, and nothing waits for the device. A weight that training itself brings to exactly zero stays
there as well, which is what a promise of zeros means.

Gradients are caught at the parameter, so one process or many (DDP) are alike. FSDP trains flat copies of the parameters
that no mask reaches; what it leaves does not pass the verification that follows every step of a recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from modicum.models import Layer


@contextmanager
def held_zeros(layers: Iterable[Layer]) -> Iterator[None]:
    """A context in which training moves no zero of these layers.

    Args:
        layers: whose zeros stay; other slices of an expert tensor are free.
    """
    slices: dict[int, list[Layer]] = {}
    for layer in layers:
        slices.setdefault(id(layer.tensor), []).append(layer)
    with ExitStack() as stack:
        for some in slices.values():
            tensor = some[0].tensor
            stack.callback(tensor.register_hook(_masked(tensor, _free(tensor, some))).remove)
        yield


def _masked(tensor: Tensor, free: Tensor | None) -> Callable[[Tensor], Tensor]:
    def hook(gradient: Tensor) -> Tensor:
        held = tensor == 0
        return gradient.masked_fill(held if free is None else held & free.logical_not(), 0.0)

    return hook


def _free(tensor: Tensor, layers: list[Layer]) -> Tensor | None:
    """Bool in the shape of `tensor`, True outside of the layers; None if they are all of it."""
    if sum(layer.out_features * layer.in_features for layer in layers) == tensor.numel():
        return None
    free = torch.ones_like(tensor, dtype=torch.bool)
    for layer in layers:
        layer.matrix(free).fill_(False)
    return free
