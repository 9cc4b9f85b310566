"""Checkpoints whose weights are coded without loss, read as if they were not.

A group of weights is coded together and stored as a few arrays under the name of the group:

    model.layers.0.luts, model.layers.0.encoded_exponent, ...         lossless.dfloat11
    model.layers.0.mlp.up_proj.weight.plane0, ....plane1              lossless.byteplanes

Which weights a group holds, and in which tensors of the original, modicum.json says under "coded"; a published
DFloat11 checkpoint has no modicum.json, and `modicum.formats.dfloat11` finds it out. `CodedShards` has the interface of
`Shards` and the tensors of the original: whatever reads a checkpoint tensor by tensor reads a coded one in this way.

Nothing is believed: names, dtypes and sizes of the arrays are compared with the layout before anything is decoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError
from torch import Tensor

from modicum.errors import CheckpointError
from modicum.formats.manifest import Manifest
from modicum.formats.shards import Shards, Stored
from modicum.kernels.byteplanes import decompress_planes
from modicum.kernels.huffman.decoder import decode
from modicum.kernels.huffman.layout import Encoded, prepare
from modicum.method import readable

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
ARRAYS = ("luts", "encoded_exponent", "sign_mantissa", "gaps", "output_positions", "split_positions")
AGAIN = "Copy the checkpoint again, with all its files."

Shape = tuple[NonNegativeInt, ...]


class CodedWeight(BaseModel):
    """One parameter of a group: its name in the model, its shape, and the tensors of the original that make it up."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    shape: Shape
    tensors: tuple[tuple[str, Shape], ...]

    @property
    def numel(self) -> int:
        """How many weights it has."""
        return prod(self.shape)


class CodedGroup(BaseModel):
    """The weights that are coded together, in the order in which they are."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    weights: tuple[CodedWeight, ...] = Field(min_length=1)

    @property
    def numel(self) -> int:
        """How many weights it has."""
        return sum(weight.numel for weight in self.weights)

    def tensors(self) -> list[tuple[str, Shape]]:
        """The tensors of the original in the order of their weights."""
        return [tensor for weight in self.weights for tensor in weight.tensors]


class Layout(BaseModel):
    """What is coded, and how."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    method: Literal["lossless.dfloat11", "lossless.byteplanes"]
    groups: dict[str, CodedGroup]

    def keys(self, name: str) -> tuple[str, ...]:
        """Names of the stored arrays of the group `name`."""
        dtype = self.groups[name].dtype
        if self.method == "lossless.byteplanes":
            return tuple(f"{name}.plane{rank}" for rank in range(DTYPES[dtype].itemsize))
        return tuple(f"{name}.{key}" for key in (*ARRAYS, *(("low",) if dtype == "float32" else ())))

    @classmethod
    def of(cls, manifest: Manifest | None) -> Layout | None:
        """The layout that modicum.json describes; None if nothing is coded.

        Raises:
            CheckpointError: the description is damaged.
        """
        if manifest is None or not manifest.coded:
            return None
        try:
            layout = cls.model_validate(manifest.coded)
        except ValidationError as error:
            raise CheckpointError(f"modicum.json: coded: {readable(error)[:300]}", AGAIN) from error
        for group in layout.groups.values():
            for weight in group.weights:
                if sum(prod(shape) for _, shape in weight.tensors) != weight.numel:
                    raise CheckpointError(
                        f"modicum.json: coded: {weight.name} and its tensors differ in size.", AGAIN
                    )
        return layout


class CodedShards(Shards):
    """The tensors of the original of a coded checkpoint.

    The group that was read last stays decoded, so reading the tensors in order decodes every group once.

    Args:
        path: the directory.
        layout: what is coded.
        every: read all safetensors of the directory, whatever an index says.

    Attributes:
        stored: what is really in the files.
        layout: what is coded.

    Raises:
        CheckpointError: arrays are missing, of another dtype or size than the layout says, or too many.
    """

    def __init__(self, path: Path, layout: Layout, *, every: bool = False) -> None:
        files = sorted(path.glob("*.safetensors")) if every else [path]
        self.path, self.layout = path, layout
        self.stored = Shards(files[0]) if files else Shards(path)
        for file in files[1:]:
            self.stored.tensors.update(Shards(file).tensors)
        self.tensors = dict(self.stored.tensors)
        self._home: dict[str, tuple[str, int, Shape]] = {}
        for name, group in layout.groups.items():
            self._check(name, group)
            self._enter(name, group)
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
        return decode(prepared, threads=torch.get_num_threads())

    def arrays(self, name: str) -> dict[str, Tensor]:
        """The stored arrays of a group by the last part of their names."""
        return {key.rpartition(".")[2]: self.stored.read(key) for key in self.layout.keys(name)}

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
            if counted.shape[0] != group.numel or splits != len(self._split(group)):
                _refuse(counted.file, name, f"it holds {counted.shape[0]} weights in {splits + 1} parts")

    def _split(self, group: CodedGroup) -> list[str]:
        return [name for name, _ in group.tensors()][1:]

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


def encoded_of(arrays: Mapping[str, Tensor], dtype: str) -> Encoded:
    """The arrays of a DFloat11 group as the kernels take them."""
    named: dict[str, Any] = {key: arrays[key] for key in ARRAYS}
    return Encoded(**named, dtype=DTYPES[dtype], low=arrays.get("low"))


def _refuse(file: Path, name: str, what: str) -> NoReturn:
    raise CheckpointError(
        f"{file}: the coded group {name}: {what}, which config.json or modicum.json denies.", AGAIN
    )


def coded_json(layout: Layout) -> dict[str, Any]:
    """The entry "coded" of modicum.json."""
    return layout.model_dump(mode="json")
