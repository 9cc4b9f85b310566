"""Checkpoints whose weights are coded without loss, read as if they were not.

A group of weights is coded together and stored as a few arrays under the name of the group:

    model.layers.0.luts, model.layers.0.encoded_exponent, ...         lossless.dfloat11
    model.layers.0.mlp.up_proj.weight.plane0, ....plane1              lossless.byteplanes

Which weights a group holds, and in which tensors of the original, modicum.json says (`modicum.formats.coded_layout`);
a published DFloat11 checkpoint has no modicum.json, and `modicum.formats.dfloat11` finds it out. `CodedShards` has the
interface of `Shards` and the tensors of the original: whatever reads a checkpoint tensor by tensor reads a coded one in
this way.

Nothing is believed: names, dtypes and sizes of the arrays are compared with the layout before anything is decoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from modicum.errors import CheckpointError
from modicum.formats.coded_layout import AGAIN, ARRAYS, DTYPES, CodedGroup, Layout, Shape
from modicum.formats.manifest import FILE
from modicum.formats.shards import Shards, Stored
from modicum.kernels.byteplanes import decompress_planes
from modicum.kernels.huffman.decoder import check_gaps, decode
from modicum.kernels.huffman.layout import Encoded, prepare
from modicum.kernels.huffman.proof import check_written


class CodedShards(Shards):
    """The tensors of the original of a coded checkpoint.

    The group that was read last stays decoded, so reading the tensors in order decodes every group once.

    Args:
        path: the directory.
        layout: what is coded.
        every: read all safetensors of the directory, whatever an index says: it is a published checkpoint.

    Attributes:
        stored: what is really in the files.
        layout: what is coded.
        thorough: look also at those bits of a group that decoding it does not read.

    Raises:
        CheckpointError: arrays are missing, of another dtype or size than the layout says, or too many.
    """

    def __init__(self, path: Path, layout: Layout, *, every: bool = False) -> None:
        files = sorted(path.glob("*.safetensors")) if every else [path]
        self.path, self.layout, self.thorough, self._ours = path, layout, False, not every
        self.stored = Shards(files[0]) if files else Shards(path)
        for file in files[1:]:
            self.stored.tensors.update(Shards(file).tensors)
        self.tensors = dict(self.stored.tensors)
        self._home: dict[str, tuple[str, int, Shape]] = {}
        for name, group in layout.groups.items():
            self._check(name, group)
            self._enter(name, group)
        for copy, name in layout.copies.items():
            self._enter_copy(copy, name)
        self._decoded: tuple[str, Tensor] | None = None

    def read(self, name: str) -> Tensor:
        if name not in self._home:
            return self.stored.read(name)
        group, start, shape = self._home[name]
        if self._decoded is None or self._decoded[0] != group:
            self._decoded = None  # its memory is free before the next group needs some
            self._decoded = group, self.decoded(group)
        return self._decoded[1][start : start + prod(shape)].view(*shape).clone()

    def decoded(self, name: str) -> Tensor:
        """All weights of a group, flat.

        Raises:
            CheckpointError: the arrays contradict each other.
        """
        group, where = (
            self.layout.groups[name],
            f"{self.stored.tensors[self.layout.keys(name)[0]].file}: {name}",
        )
        if self.layout.method == "lossless.byteplanes":
            frames = [self.stored.read(key).numpy().tobytes() for key in self.layout.keys(name)]
            try:
                return decompress_planes(frames, [group.numel], DTYPES[group.dtype])
            except CheckpointError as error:
                raise CheckpointError(f"{where}: {error.what}", error.hint) from error
        prepared = prepare(encoded_of(self.arrays(name), group.dtype), where)
        weights = decode(prepared, threads=torch.get_num_threads())
        if self.thorough:
            check_written(prepared, weights) if self._ours else check_gaps(prepared)
        return weights

    def arrays(self, name: str) -> dict[str, Tensor]:
        """The stored arrays of a group by the last part of their names.

        Raises:
            CheckpointError: they cannot be read, or say that the group consists of other tensors.
        """
        arrays = {key.rpartition(".")[2]: self.stored.read(key) for key in self.layout.keys(name)}
        if self.layout.method == "lossless.dfloat11":
            sizes = [prod(shape) for _, shape in self.layout.groups[name].tensors()]
            if arrays["split_positions"].tolist() != list(accumulate(sizes))[:-1]:
                file = self.stored.tensors[f"{name}.split_positions"].file
                _refuse(file, name, "split_positions does not lie between its tensors")
        return arrays

    def _check(self, name: str, group: CodedGroup) -> None:
        """Compare names, dtypes and sizes with what is stored, from the headers."""
        for key in self.layout.keys(name):
            if key not in self.stored:
                _refuse(self.path, name, f"{key} is missing")
            stored, leaf = self.stored.tensors[key], key.rpartition(".")[2]
            wanted = {"split_positions": torch.int64, "low": torch.int16}.get(leaf, torch.uint8)
            if stored.dtype != wanted or len(stored.shape) != (2 if leaf == "luts" else 1):
                _refuse(stored.file, name, f"{key} is {stored.dtype} {list(stored.shape)}")
        if self.layout.method == "lossless.dfloat11":
            counted = self.stored.tensors[f"{name}.sign_mantissa"]
            splits = self.stored.tensors[f"{name}.split_positions"].shape[0]
            if counted.shape[0] != group.numel or splits != len(group.tensors()) - 1:
                _refuse(counted.file, name, f"it holds {counted.shape[0]} weights in {splits + 1} parts")

    def _enter(self, name: str, group: CodedGroup) -> None:
        """Put the tensors of the original in the place of the arrays."""
        file = self.stored.tensors[self.layout.keys(name)[0]].file
        for key in self.layout.keys(name):
            self.tensors.pop(key, None)
        start, dtype = 0, DTYPES[group.dtype]
        for tensor, shape in group.tensors():
            twin = self._home.get(tensor)
            if tensor in self.stored or (twin is not None and twin[2] != shape):
                _refuse(file, name, f"{tensor} is stored twice")
            self._home[tensor] = name, start, shape
            self.tensors[tensor] = Stored(file, dtype, shape, 0, prod(shape) * dtype.itemsize)
            start += prod(shape)

    def _enter_copy(self, copy: str, name: str) -> None:
        """Put a tensor of the original beside the coded one that has its bits."""
        if name not in self._home or copy in self.tensors:
            raise CheckpointError(f"{self.path / FILE}: coded.copies: {copy} is no copy of {name}.", AGAIN)
        self._home[copy], self.tensors[copy] = self._home[name], self.tensors[name]


def encoded_of(arrays: Mapping[str, Tensor], dtype: str) -> Encoded:
    """The arrays of a DFloat11 group as the kernels take them."""
    named: dict[str, Any] = {key: arrays[key] for key in ARRAYS}
    return Encoded(**named, dtype=DTYPES[dtype], low=arrays.get("low"))


def _refuse(file: Path, name: str, what: str) -> NoReturn:
    raise CheckpointError(
        f"{file}: the coded group {name}: {what}, which config.json or modicum.json denies.", AGAIN
    )
