"""What each layer and function does to channels: makes new ones, ties old ones, moves them, or lets them through.

A rule takes a `Call` and returns the channels of the result (or of its pieces). New kinds of layers are added to
`MODULES`; a layer of a model's own may also bring a method `follow(call)`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from modicum.errors import UnsupportedModel
from modicum.models.channels.coupling import Ids, Ledger


@dataclass(frozen=True)
class Call:
    """One node of the graph.

    Attributes:
        name: of the module (dotted) or function.
        module: if it is one.
        node: of the graph.
        given: channels of the tensors among its arguments.
        pieces: channels of the pieces, if the first argument is what a split left.
        shapes: of the tensors it reads.
        shape: of its result, if that is one tensor.
        ledger: to make, tie and bind channels with.
    """

    name: str
    module: Any
    node: fx.Node
    given: list[Ids]
    pieces: tuple[Ids, ...]
    shapes: list[tuple[int, ...]]
    shape: tuple[int, ...] | None
    ledger: Ledger

    def bind(self, tensor: str, dim: int, ids: Ids, *, produces: bool = False) -> None:
        """An axis of a tensor of the module, if the module has that tensor."""
        if getattr(self.module, tensor, None) is not None:
            self.ledger.bind(f"{self.name}.{tensor}", dim, ids, produces=produces)

    def argument(self, position: int, name: str, default: Any) -> Any:
        """An argument by position or name."""
        return self.node.kwargs.get(
            name, self.node.args[position] if position < len(self.node.args) else default
        )

    def refuse(self, why: str) -> UnsupportedModel:
        """The error for a use of this call that has no rule."""
        return UnsupportedModel(
            f"{self.node.name} ({self.name}) {why}.", "Leave this model's width as it is."
        )


Rule = Callable[[Call], Any]


def _through(call: Call) -> Ids:
    """Elementwise, or pooling: channels stay where they are."""
    return call.given[0]


def _made(call: Call, count: int) -> Ids:
    """New channels, made by the weight's first axis."""
    out = call.ledger.fresh(count)
    call.bind("weight", 0, out, produces=True)
    call.bind("bias", 0, out)
    return out


def _convolution(call: Call) -> Ids:
    conv, x = call.module, call.given[0]
    groups, width = conv.groups, conv.in_channels // conv.groups
    out = _made(call, conv.out_channels)
    if groups == 1:
        call.bind("weight", 1, x)
    elif width == 1:  # depthwise: a channel and what is made of it go together
        call.ledger.tie(np.repeat(x, conv.out_channels // groups), out)
    else:  # every group loses the same positions
        for each in (x.reshape(groups, -1), out.reshape(groups, -1)):
            call.ledger.tie(np.tile(each[0], groups - 1), each[1:].reshape(-1))
        call.bind("weight", 1, x[:width])
    return out


def _linear(call: Call) -> Ids:
    if len(call.shapes[0]) != 2:
        raise call.refuse("is a linear layer on more than one vector per sample")
    call.bind("weight", 1, call.given[0])
    return _made(call, call.module.out_features)


def _norm(call: Call) -> Ids:
    for tensor in ("weight", "bias", "running_mean", "running_var"):
        call.bind(tensor, 0, call.given[0])
    return call.given[0]


def _together(call: Call) -> Ids:
    """Sums and products: what meets goes together."""
    first, *others = call.given
    for other in others:
        if len(other) != len(first):
            raise call.refuse("combines tensors of different widths")
        call.ledger.tie(first, other)
    return first


def _concatenated(call: Call) -> Ids:
    if call.argument(1, "dim", 0) not in (1, 1 - len(call.shapes[0])):
        raise call.refuse("concatenates along another axis than channels")
    return np.concatenate(call.given)


def _split(call: Call) -> tuple[Ids, ...]:
    """Pieces of sizes that the model's code says; it would say them of a smaller tensor too, so all must stay."""
    if call.argument(2, "dim", 0) != 1:
        raise call.refuse("splits along another axis than channels")
    size, total = call.argument(1, "split_size", None), len(call.given[0])
    cuts = np.cumsum(size)[:-1] if isinstance(size, list | tuple) else range(size, total, size)
    call.ledger.fix(call.given[0])
    return tuple(np.split(call.given[0], cuts))


def _chunk(call: Call) -> tuple[Ids, ...]:
    """Equal pieces: they stay equal if every piece loses the same positions."""
    if call.argument(2, "dim", 0) != 1:
        raise call.refuse("splits along another axis than channels")
    total, parts = len(call.given[0]), call.argument(1, "chunks", 1)
    if total % parts:
        raise call.refuse(f"splits {total} channels into {parts} pieces of different sizes")
    first, *others = np.split(call.given[0], parts)
    for other in others:
        call.ledger.tie(first, other)
    return (first, *others)


def _item(call: Call) -> Ids:
    """A piece of a split, or a window over positions."""
    index = call.node.args[1]
    if call.pieces:
        return call.pieces[index]  # type: ignore[index]
    if not (isinstance(index, tuple) and index[1:2] == (slice(None),)):
        raise call.refuse("takes some of the channels by index")
    return call.given[0]


def _flattened(call: Call) -> Ids:
    """[B, C, H, W] to [B, C H W]: every channel becomes H W neighbours."""
    before, after = call.shapes[0], call.shape
    if after is None or len(after) != 2 or after[0] != before[0]:
        raise call.refuse("reshapes to something else than one vector per sample")
    if call.name in ("view", "reshape") and call.node.args[-1] != -1:
        call.ledger.fix(call.given[0])  # the width stands in the model's code
    return np.repeat(call.given[0], after[1] // before[1])


def _pooled(call: Call) -> Ids:
    """A mean over positions."""
    axes = call.argument(1, "dim", None)
    rank = len(call.shapes[0])
    axes = [axes] if isinstance(axes, int) else axes
    if axes is None or any(axis % rank < 2 for axis in axes):
        raise call.refuse("reduces over samples or channels")
    return call.given[0]


def _size(call: Call) -> None:
    """Numbers, no channels."""


_BY_POSITION = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid,
    nn.Tanh, nn.Softplus, nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d,
)  # fmt: skip
MODULES: dict[type[nn.Module], Rule] = {
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
    nn.Flatten: _flattened,
    **dict.fromkeys(_BY_POSITION, _through),
}
FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys((operator.add, operator.iadd, operator.sub, operator.mul, operator.imul), _together),
    **dict.fromkeys((torch.add, torch.sub, torch.mul), _together),
    **dict.fromkeys((torch.relu, torch.sigmoid, torch.tanh, F.relu, F.gelu, F.silu, F.dropout), _through),
    **dict.fromkeys(
        (F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.interpolate, operator.neg), _through
    ),
    torch.cat: _concatenated,
    torch.split: _split,
    torch.chunk: _chunk,
    torch.flatten: _flattened,
    torch.mean: _pooled,
    operator.getitem: _item,
    getattr: _size,  # x.shape
}
METHODS: dict[str, Rule] = {
    **dict.fromkeys(("relu", "sigmoid", "tanh", "contiguous", "clone", "relu_"), _through),
    **dict.fromkeys(("add", "add_", "mul", "mul_", "sub"), _together),
    **dict.fromkeys(("flatten", "view", "reshape"), _flattened),
    "split": _split,
    "chunk": _chunk,
    "mean": _pooled,
    "size": _size,
}


def rule_of(module: nn.Module) -> Rule | None:
    """The rule for a layer: its own `follow`, or the table's."""
    own: Rule | None = getattr(module, "follow", None)
    return own or MODULES.get(type(module))
