"""Coupled cuts: what must go together when a neuron or an attention head is taken out of a block.

A neuron of a feed-forward layer is a row of `gate` and of `up` and a column of `down`; a head is rows of `q`, `k` and
`v` and columns of `o`. Rows take their bias along. With grouped queries a key-value head goes with all of its query
heads, so that every query head that stays finds the keys it was trained with. Whole heads leave rotary positions and
norms within heads alone. Fused matrices (qkv, gate_up) are cut in two or three places.

    units = cuttable(anatomy)                  # per block: its heads, its neurons
    unit.count, unit.size                      # how many there are, parameters of each
    unit.parts[-1].of(weight)                  # [count, size, other]: what one matrix has of every one of them
    zero(unit, removed)                        # same function as ...
    anatomy = cut(anatomy, {unit: kept})       # ... but this one is smaller and faster

The two agree because a removed row or column only ever meets its partners in the group. The residual stream is never
cut: its norms look at all of it, so that a zero there is not an absence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from modicum.errors import InvalidSetting, UnsupportedModel
from modicum.models.anatomy import Anatomy, Block
from modicum.models.layer import Layer
from modicum.models.sizes import adopt_sizes, check_sizes, shrink_counts

Kind = Literal["heads", "neurons"]


@dataclass(frozen=True, eq=False)
class Part:
    """What one matrix has of every group.

    Attributes:
        layer: the matrix; it may be fused with others.
        axis: 0 if a group owns rows (and their biases), 1 if it owns columns.
        members: int64 [groups, size], the indices along that axis.
    """

    layer: Layer
    axis: int
    members: Tensor

    def of(self, matrix: Tensor) -> Tensor:
        """The entries of `matrix` [out, in] that belong to each group, [groups, size, other]."""
        lines = matrix if self.axis == 0 else matrix.t()
        return lines[self.members]


@dataclass(frozen=True, eq=False)
class Cuttable:
    """All heads, or all neurons, of one block: groups of rows and columns that can go.

    Attributes:
        name: of the block and the kind, "model.layers.0.heads".
        kind: heads or neurons.
        block: index of the block.
        parts: what each matrix has of them; the last one is the matrix that reads them (o, down, fc2).
        owners: modules that count them.
    """

    name: str
    kind: Kind
    block: int
    parts: tuple[Part, ...]
    owners: tuple[nn.Module, ...]

    @property
    def count(self) -> int:
        """How many groups there are."""
        return len(self.parts[0].members)

    @cached_property
    def size(self) -> int:
        """Parameters of one group, biases included."""
        return sum(map(_parameters, self.parts))

    @property
    def reader(self) -> Part:
        """The columns of the matrix that reads what the groups compute."""
        return self.parts[-1]

    def columns(self, groups: Tensor) -> Tensor:
        """Ascending input channels of the reader that belong to these groups, int64 [n]."""
        return self.reader.members[groups].flatten().sort().values


def _parameters(part: Part) -> int:
    lines, other = part.members.shape[1], (part.layer.in_features, part.layer.out_features)[part.axis]
    return lines * (other + (part.axis == 0 and part.layer.bias is not None))


def cuttable(anatomy: Anatomy, kinds: Sequence[Kind] = ("heads", "neurons")) -> list[Cuttable]:
    """What can be cut in every block, in execution order.

    Routed experts are left whole, and heads whose norm spans all of them (OLMoE).

    Raises:
        UnsupportedModel: no model of transformers, a matrix is compressed already, or there is nothing to cut.
    """
    if not isinstance(anatomy.model, PreTrainedModel):
        raise UnsupportedModel(
            f"{type(anatomy.model).__name__} is not a transformers model.", "Width is cut in those alone."
        )
    for layer in anatomy.layers():
        if layer.form is not None:
            raise UnsupportedModel(
                f"{layer.name} is compressed already.", "Cut first and compress afterwards."
            )
    makers = {"heads": _heads, "neurons": _neurons}
    found = [unit for block in anatomy.blocks for kind in kinds for unit in makers[kind](block)]
    if not found:
        raise UnsupportedModel(
            f"The blocks of {type(anatomy.model).__name__} have no {' and no '.join(kinds)} that can be cut."
        )
    return found


def _heads(block: Block) -> Iterator[Cuttable]:
    layers = _by_role(block)
    if "o" not in layers or not ({"q", "k", "v"} <= layers.keys() or "qkv" in layers):
        return
    first = layers.get("q", layers.get("qkv"))
    assert first is not None
    owner, queries = _owner(block, first), layers["o"].in_features
    head_dim = getattr(owner, "head_dim", getattr(owner, "attention_head_size", None))
    if head_dim is None or not _norms_within_heads(owner, head_dim):
        return
    if "qkv" in layers:
        keys = (first.out_features - queries) // 2
        starts = {(first, 0): queries, (first, queries): keys, (first, queries + keys): keys}
    else:
        starts = {(layers[role], 0): layers[role].out_features for role in "qkv"}
        keys = layers["k"].out_features
    count = keys // head_dim
    rows = tuple(
        Part(layer, 0, _lines(layer, start, length, count)) for (layer, start), length in starts.items()
    )
    columns = Part(layers["o"], 1, _lines(layers["o"], 0, queries, count))
    yield Cuttable(f"{block.name}.heads", "heads", block.index, (*rows, columns), (owner,))


def _neurons(block: Block) -> Iterator[Cuttable]:
    layers = _by_role(block)
    if {"gate", "up", "down"} <= layers.keys():
        rows, reader = [(layers["gate"], 0), (layers["up"], 0)], layers["down"]
    elif {"gate_up", "down"} <= layers.keys():
        fused, reader = layers["gate_up"], layers["down"]
        rows = [(fused, 0), (fused, reader.in_features)]
    elif {"fc1", "fc2"} <= layers.keys():
        rows, reader = [(layers["fc1"], 0)], layers["fc2"]
    else:
        return
    count = reader.in_features
    parts = (
        *(Part(layer, 0, _lines(layer, start, count, count)) for layer, start in rows),
        Part(reader, 1, _lines(reader, 0, count, count)),
    )
    yield Cuttable(f"{block.name}.neurons", "neurons", block.index, parts, (_owner(block, rows[0][0]),))


def _by_role(block: Block) -> dict[str, Layer]:
    return {layer.role: layer for layer in block.layers if layer.expert is None}


def _owner(block: Block, layer: Layer) -> nn.Module:
    path = layer.name.removeprefix(f"{block.name}.").rpartition(".")[0]
    return block.module.get_submodule(path)


def _lines(layer: Layer, start: int, length: int, count: int) -> Tensor:
    return torch.arange(start, start + length, device=layer.weight.device).view(count, -1)


def _norms_within_heads(owner: nn.Module, head_dim: int) -> bool:
    """Whether no norm of the attention looks beyond one head."""
    norms = (p for name, p in owner.named_parameters() if p.dim() == 1 and not name.endswith("bias"))
    return all(parameter.numel() == head_dim for parameter in norms)


@torch.no_grad()
def zero(unit: Cuttable, groups: Tensor) -> None:
    """Set everything that belongs to these groups (int64 [n]) to zero, in place; shapes stay."""
    for part in unit.parts:
        lines = part.members[groups].flatten()
        part.layer.weight.index_fill_(part.axis, lines, 0)
        if part.axis == 0 and part.layer.bias is not None:
            part.layer.bias.index_fill_(0, lines, 0)


@torch.no_grad()
def cut(anatomy: Anatomy, kept: Mapping[Cuttable, Tensor]) -> Anatomy:
    """Take groups out for good, in place: matrices shrink, and what counts them follows.

    Where all blocks agree, the config says the new sizes, if its class accepts them; a checkpoint then needs modicum
    for nothing. Otherwise it keeps the old ones, and `modicum.save` writes down what differs.

    Args:
        anatomy: of the model.
        kept: ascending int64 indices of the groups that stay, of what is to be cut.

    Returns:
        The anatomy of the smaller model; the old one does not describe it.

    Raises:
        InvalidSetting: indices that are out of range, repeated or out of order, or none.
        UnsupportedModel: blocks would differ in a number that the model reads from its config.
    """
    for unit, groups in kept.items():
        _check_kept(unit, groups)
    counts = {unit.name: len(groups) for unit, groups in kept.items()}
    sizes = [(unit, counts.get(unit.name, unit.count)) for unit in cuttable(anatomy)]
    check_sizes(anatomy.model, sizes)
    for unit, groups in kept.items():
        for layer in dict.fromkeys(part.layer for part in unit.parts):
            _shrink([part for part in unit.parts if part.layer is layer], groups)
        shrink_counts(unit, len(groups))
    adopt_sizes(anatomy.model, sizes)
    return Anatomy.of(anatomy.model, anatomy.family)


def _check_kept(unit: Cuttable, groups: Tensor) -> None:
    listed = groups.tolist()
    if not listed or listed != sorted(set(listed)) or listed[0] < 0 or listed[-1] >= unit.count:
        raise InvalidSetting(
            f"{listed[:8]} is no choice of the {unit.count} {unit.kind} of {unit.name}.",
            "Keep at least one, in ascending order.",
        )


def _shrink(parts: list[Part], groups: Tensor) -> None:
    """Keep the lines of these groups in the matrix that all `parts` are of; sorted, so that fused ones stay apart."""
    layer, axis = parts[0].layer, parts[0].axis
    lines = torch.cat([part.members[groups].flatten() for part in parts]).sort().values
    bias = layer.bias
    if axis == 0 and bias is not None:
        bias = bias.detach()[lines]
    layer.resize(layer.weight.detach().index_select(axis, lines), bias)


@contextmanager
def masked(masks: Mapping[Cuttable, Tensor]) -> Iterator[None]:
    """A context in which groups whose mask (bool [groups]) is False count for nothing; no weight is touched."""
    with ExitStack() as stack:
        for unit, mask in masks.items():
            reader = unit.reader
            channels = torch.zeros(reader.layer.in_features, device=reader.members.device)
            channels[reader.members[mask.to(reader.members.device)].flatten()] = 1
            stack.callback(reader.layer.module.register_forward_pre_hook(_times(channels)).remove)
        yield


def _times(channels: Tensor) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0] * channels.to(args[0].dtype), *args[1:])

    return hook
