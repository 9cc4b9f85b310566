"""What modicum.json says of weights that are coded without loss: groups, what they consist of, and copies.

Every description has a sum beside it, because some changes of it (bfloat16 to float16) would fit the arrays as well.
"""

from __future__ import annotations

import hashlib
import json
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from modicum.errors import CheckpointError
from modicum.formats.manifest import FILE, Manifest
from modicum.method import readable

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
ARRAYS = ("luts", "encoded_exponent", "sign_mantissa", "gaps", "output_positions", "split_positions")
SUMS = "sums"
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
    """What is coded, and how.

    Attributes:
        method: that coded it.
        groups: the weights that are coded together, by the name of their arrays.
        copies: tensors of the original with the same bits as a coded one (a tied head), and which one.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    method: Literal["lossless.dfloat11", "lossless.byteplanes"]
    groups: dict[str, CodedGroup]
    copies: dict[str, str] = {}

    def keys(self, name: str) -> tuple[str, ...]:
        """Names of the stored arrays of the group `name`."""
        dtype = self.groups[name].dtype
        if self.method == "lossless.byteplanes":
            return tuple(f"{name}.plane{rank}" for rank in range(DTYPES[dtype].itemsize))
        return tuple(f"{name}.{key}" for key in (*ARRAYS, *(("low",) if dtype == "float32" else ())))

    @classmethod
    def of(cls, manifest: Manifest | None, directory: Path) -> Layout | None:
        """The layout that modicum.json describes; None if nothing is coded.

        Args:
            manifest: modicum.json.
            directory: in which it lies.

        Raises:
            CheckpointError: the description is damaged.
        """
        if manifest is None or not manifest.coded:
            return None
        where = f"{directory / FILE}: coded"
        try:
            layout = cls.model_validate(manifest.coded)
        except ValidationError as error:
            raise CheckpointError(f"{where}: {readable(error)[:300]}", AGAIN) from error
        for name, group in layout.groups.items():
            for weight in group.weights:
                if sum(prod(shape) for _, shape in weight.tensors) != weight.numel:
                    raise CheckpointError(f"{where}: {weight.name} and its tensors differ in size.", AGAIN)
            _check_sum(f"{where}.groups.{name}", group, manifest.coded.get(SUMS), name)
        return layout


def _sum(group: CodedGroup) -> str:
    """A fingerprint of what is said of a group."""
    return hashlib.sha256(json.dumps(group.model_dump(mode="json")).encode()).hexdigest()[:16]


def _check_sum(where: str, group: CodedGroup, sums: Any, name: str) -> None:
    said = sums.get(name) if isinstance(sums, dict) else None
    if said == _sum(group):
        return
    meant = next((d for d in DTYPES if said == _sum(group.model_copy(update={"dtype": d}))), None)
    if meant is not None:
        raise CheckpointError(f"{where}.dtype says {group.dtype}, but {meant} was written.", AGAIN)
    raise CheckpointError(f"{where} does not say what was written.", AGAIN)


def coded_json(layout: Layout) -> dict[str, Any]:
    """The entry "coded" of modicum.json."""
    sums = {name: _sum(group) for name, group in layout.groups.items()}
    return {**layout.model_dump(mode="json"), SUMS: sums}
