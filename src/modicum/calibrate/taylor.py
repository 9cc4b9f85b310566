"""Gradient and empirical Fisher information of the weights, over single samples.

    g = mean_n dL_n/dW          F = mean_n (dL_n/dW)^2

both [out, in] float32, from one backward pass per sample. The loss is that of the whole model, so all gradients of the
chosen layers are held at once: twice their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modicum.errors import NotFinite, UnsupportedModel, UnusableData
from modicum.models.layer import Layer


@dataclass(frozen=True)
class Taylor:
    """What a loss knows of one weight matrix.

    Attributes:
        gradient: mean over samples, [out, in] float32.
        fisher: mean of the squares, [out, in] float32.
    """

    gradient: Tensor
    fisher: Tensor


def expand_loss(layers: Sequence[Layer], losses: Iterable[Callable[[], Tensor]]) -> dict[Layer, Taylor]:
    """Gradient and Fisher information of each layer.

    Args:
        layers: dense layers, of a model in float32 or bfloat16.
        losses: each runs the model on one sample and returns its loss, a scalar with a graph.

    Raises:
        UnusableData: there is no sample.
        UnsupportedModel: weights in float16, in which gradients of single tokens vanish.
        NotFinite: a gradient is NaN or infinite.
    """
    weights = [layer.tensor for layer in layers]
    if any(weight.dtype == torch.float16 for weight in weights):
        raise UnsupportedModel("Gradients vanish in float16.", "Load the model in float32.")
    tracked = [weight.requires_grad for weight in weights]
    first = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    second = [torch.zeros_like(total) for total in first]
    count = 0
    try:
        for weight in weights:
            weight.requires_grad_()
        for loss in losses:
            _add(torch.autograd.grad(loss(), weights), first, second)
            count += 1
    finally:
        for weight, before in zip(weights, tracked, strict=True):
            weight.requires_grad_(before)
    if not count:
        raise UnusableData("There is no sample to take gradients of.", "Give at least one.")
    return {
        layer: _finite(layer, g.div_(count), f.div_(count))
        for layer, g, f in zip(layers, first, second, strict=True)
    }


def _add(gradients: Sequence[Tensor], first: list[Tensor], second: list[Tensor]) -> None:
    for gradient, total, squares in zip(gradients, first, second, strict=True):
        wide = gradient.float()
        total.add_(wide)
        squares.addcmul_(wide, wide)


def _finite(layer: Layer, gradient: Tensor, fisher: Tensor) -> Taylor:
    if not bool(fisher.isfinite().all()):
        raise NotFinite(f"The gradient at {layer.name} is NaN or infinite.", "Look for NaN in the weights.")
    return Taylor(layer.matrix(gradient), layer.matrix(fisher))
