"""Whether two checkpoints hold the same bits, tensor by tensor, whatever format each is stored in.

What is coded without loss is decoded, a group at a time, and those bits of it that decoding does not read are looked at
as well; everything else is compared as it lies in its file. Values are never compared as numbers: 0.0 and -0.0 differ,
and a NaN equals itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modicum.formats.coded import CodedShards
from modicum.formats.shards import Shards
from modicum.kernels.chunks import row_chunks
from modicum.pipeline.coded import original_shards
from modicum.weights.base import dtype_name

_BEYOND = 8
"""Temporary bytes per compared byte, at most."""


@dataclass(frozen=True)
class Difference:
    """The first thing in which two checkpoints differ.

    Attributes:
        tensor: its name.
        what: in words: it is missing, has another dtype or shape, or another value.
        index: of the first value that differs; empty if it is not a value.
        first: that value in the first checkpoint, as a hexadecimal number.
        second: likewise in the second.
    """

    tensor: str
    what: str
    index: tuple[int, ...] = ()
    first: str = ""
    second: str = ""


@dataclass(frozen=True)
class Verification:
    """What a comparison found.

    Attributes:
        tensors: how many were compared.
        nbytes: of the original weights that were compared.
        difference: the first one; None if all bits are equal.
    """

    tensors: int
    nbytes: int
    difference: Difference | None = None

    @property
    def identical(self) -> bool:
        """Whether all bits are equal."""
        return self.difference is None

    def to_dict(self) -> dict[str, Any]:
        """The findings as plain JSON values."""
        return {"identical": self.identical, **asdict(self)}


def verify(
    first: Path, second: Path, told: Callable[[int, int], None] = lambda done, of: None
) -> Verification:
    """Compare the tensors of two checkpoints bit for bit, up to the first difference.

    Args:
        first: a directory (or a .safetensors file) in any format that modicum opens.
        second: likewise.
        told: called with the bytes that are compared and those that there are.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    a, b = original_shards(first), original_shards(second)
    for shards in (a, b):
        if isinstance(shards, CodedShards):
            shards.thorough = True
    absent = sorted(set(a.tensors) ^ set(b.tensors))
    if absent:
        only = first if absent[0] in a else second
        return Verification(0, 0, Difference(absent[0], f"only {only} holds it ({len(absent)} such tensors)"))
    total, done = a.nbytes(), 0
    for count, name in enumerate(_in_order(a, b)):
        found = _compare(name, a, b)
        done += a.tensors[name].nbytes
        told(done, total)
        if found is not None:
            return Verification(count + 1, done, found)
    return Verification(len(a.tensors), done)


def _in_order(a: Shards, b: Shards) -> Iterator[str]:
    """All names, those of one coded group behind each other, so that it is decoded once."""
    layouts = [shards.layout for shards in (a, b) if isinstance(shards, CodedShards)]
    grouped = {
        name: None for layout in layouts for group in layout.groups.values() for name, _ in group.tensors()
    }
    yield from {**grouped, **dict.fromkeys(a.names())}


def _compare(name: str, a: Shards, b: Shards) -> Difference | None:
    at, there = a.tensors[name], b.tensors[name]
    if (at.dtype, at.shape) != (there.dtype, there.shape):
        kinds = [f"{dtype_name(side.dtype)} {list(side.shape)}" for side in (at, there)]
        return Difference(name, f"it is {kinds[0]} in the first and {kinds[1]} in the second")
    one, other = _bytes(a.read(name)), _bytes(b.read(name))
    for some in row_chunks(len(one), _BEYOND):
        if not torch.equal(one[some], other[some]):
            byte = some.start + int((one[some] != other[some]).nonzero()[0])
            return _value(name, byte, at.dtype.itemsize, at.shape, one, other)
    return None


def _value(name: str, byte: int, size: int, shape: tuple[int, ...], one: Tensor, other: Tensor) -> Difference:
    """The value that holds a byte in which two tensors differ; both in bytes."""
    place, index = byte // size, []
    for extent in reversed(shape):
        place, rest = divmod(place, extent)
        index.append(rest)
    here = slice(byte // size * size, byte // size * size + size)
    values = [
        f"0x{int.from_bytes(bytes(side[here].tolist()), 'little'):0{2 * size}x}" for side in (one, other)
    ]
    where = tuple(reversed(index))
    return Difference(
        name, f"{list(where)} is {values[0]} in the first and {values[1]} in the second", where, *values
    )


def _bytes(tensor: Tensor) -> Tensor:
    """A tensor as its bytes, uint8 [nbytes]."""
    return tensor.reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)
