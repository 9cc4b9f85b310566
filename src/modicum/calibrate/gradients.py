"""How the loss depends on every weight, one block at a time.

For windows s of text with the loss L_s (mean cross-entropy of the next token, all tokens of a window but the first):

    gradient_ij = sqrt( sum_s (100 dL_s / dW_ij)^2 )

Backpropagation needs a block's input, its weights, and what the loss wants of its output. So a model that does not fit
into memory goes through twice: forwards, keeping what enters every block, and backwards, a block at a time, running it
once more with gradients on (activation checkpointing with one checkpoint per block). Everything comes from the model as
it is given; nothing is trained.

The factor 100 is that of the published code. It keeps gradients of half precision models away from zero.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from modicum.errors import NotFinite, UnsupportedModel, UnusableData
from modicum.kernels.checks import all_finite
from modicum.models.anatomy import Anatomy, Block
from modicum.models.tail import run_tail

SCALE = 100.0
IGNORED = -100  # the label that the loss of transformers leaves out


@torch.enable_grad()
def tail_gradient(anatomy: Anatomy, inputs: Mapping[str, Any], states: Tensor) -> Tensor:
    """100 dL/dh for what leaves the last block, same shape and dtype as `states`.

    Args:
        anatomy: the model; what lies outside the blocks must be in memory.
        inputs: keyword arguments of the model, `input_ids` among them, for one window.
        states: [1, tokens, features] behind the last block.

    Raises:
        UnsupportedModel: the model predicts no tokens.
        UnusableData: a batch without token ids, or too short to predict anything.
    """
    if "labels" not in inspect.signature(anatomy.model.forward).parameters:
        kind = type(anatomy.model).__name__
        raise UnsupportedModel(
            f"{kind} has no loss of its own to take gradients of.", "Use a metric that does without G."
        )
    states = states.detach().requires_grad_()
    output = run_tail(anatomy, {**inputs, "labels": _labels(inputs)}, states)
    return torch.autograd.grad(SCALE * output.loss.float(), states)[0]


def _labels(inputs: Mapping[str, Any]) -> Tensor:
    """The tokens themselves, [batch, tokens]; padding predicts nothing."""
    tokens, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if not isinstance(tokens, Tensor) or tokens.shape[-1] < 2:
        raise UnusableData(
            "Gradients need windows of two tokens or more.", "Give token ids, or a metric without G."
        )
    return tokens if mask is None else tokens.masked_fill(mask == 0, IGNORED)


@torch.no_grad()
def block_gradients(
    block: Block,
    run: Callable[[int, Tensor], Tensor],
    states: Sequence[Tensor],
    wanted: Sequence[Tensor],
    names: Collection[str],
) -> dict[str, Tensor]:
    """Go back through one block, window by window.

    Args:
        block: its weights must be in memory.
        run: `run(i, states)` gives the block's output for window i.
        states: what enters the block, [1, tokens, features] per window.
        wanted: 100 dL/dh for what leaves it, same shapes; overwritten by that for what enters it.
        names: layers to look at.

    Returns:
        The gradient statistic by layer name, [out, in] float32 each.

    Raises:
        NotFinite: a gradient left the range of its dtype.
    """
    layers = [layer for layer in block.layers if layer.name in names]
    parameters = list({id(layer.tensor): layer.tensor for layer in layers}.values())
    sums = [torch.zeros(p.shape, dtype=torch.float32, device=p.device) for p in parameters]
    with _tracked(parameters):
        for i, (entering, leaving) in enumerate(zip(states, wanted, strict=True)):
            first, *others = _backward(partial(run, i), entering, leaving, parameters)
            assert first is not None  # a block passes its input on
            leaving.copy_(first)
            for total, gradient in zip(sums, others, strict=True):
                if gradient is not None:
                    total.add_(gradient.float().square_())
    by_parameter = {id(p): total.sqrt_() for p, total in zip(parameters, sums, strict=True)}
    found = {layer.name: layer.matrix(by_parameter[id(layer.tensor)]).contiguous() for layer in layers}
    for name, gradient in found.items():
        _refuse_infinite(name, gradient)
    return found


@torch.enable_grad()
def _backward(
    run: Callable[[Tensor], Tensor], entering: Tensor, leaving: Tensor, parameters: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """Gradients of one window: for what enters, then for each parameter (None where it was not used)."""
    entering = entering.detach().requires_grad_()
    return torch.autograd.grad(run(entering), [entering, *parameters], leaving, allow_unused=True)


@contextmanager
def _tracked(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Within: autograd follows these parameters; what it did before comes back afterwards."""
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_()
    try:
        yield
    finally:
        for parameter, tracked in zip(parameters, before, strict=True):
            parameter.requires_grad_(tracked)


def _refuse_infinite(name: str, gradient: Tensor) -> None:
    if not all_finite(gradient):
        raise NotFinite(
            f"The gradient at {name} is NaN or infinite.", "Compute in a wider dtype: --dtype float32."
        )
