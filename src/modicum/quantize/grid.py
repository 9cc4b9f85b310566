"""The settings that every integer quantizer shares: bits, group size, symmetry."""

from __future__ import annotations

import torch
from pydantic import Field, field_validator
from torch import Tensor

from modicum.kernels.grids import IntegerScheme
from modicum.method import LayerMethod
from modicum.weights.base import WeightForm, dtype_name, from_spec, make_spec
from modicum.weights.packed import PackedWeight
from modicum.weights.properties import IntegerGrid, NMPattern, Property, ZeroMask


class IntegerMethod(LayerMethod):
    """A layer method whose result is packed integers with a scale per group. Zero is always on the grid."""

    keeps = (ZeroMask, NMPattern)

    bits: int = Field(4, ge=2, le=8, description="bits per weight")
    group_size: int = Field(
        128, ge=-1, description="consecutive inputs that share a scale; -1 for the whole row"
    )
    symmetric: bool = Field(True, description="grid without zero point (loads everywhere)")

    @field_validator("group_size")
    @classmethod
    def _whole_row_or_positive(cls, value: int) -> int:
        if value == 0:
            raise ValueError("must be positive, or -1 for the whole row")
        return value

    def gives(self) -> tuple[Property, ...]:
        return (IntegerGrid(self.bits, self.group_size),)

    def expected_form(self, weight: Tensor) -> WeightForm:
        settings = {
            "bits": self.bits,
            "group_size": self.group_size,
            "symmetric": self.symmetric,
            "scale_dtype": dtype_name(weight.dtype),
        }
        with torch.device("meta"):
            return from_spec(make_spec(PackedWeight, weight, settings))

    def scheme(self) -> IntegerScheme:
        """The grid of these settings."""
        return IntegerScheme(self.bits, self.group_size, self.symmetric)
