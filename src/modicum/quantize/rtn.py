"""Round to nearest: the baseline of weight quantization."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from modicum.calibrate.statistics import Statistics
from modicum.kernels.chunks import chunked_bytes
from modicum.kernels.grids import fit_grid, quantize
from modicum.method import Paper, Target
from modicum.quantize.grid import IntegerMethod
from modicum.weights.base import WeightForm
from modicum.weights.packed import PackedWeight


class RTN(IntegerMethod):
    """Round every weight to the nearest point of its group's grid; needs no data.

    Symmetric: scale = max|w| / ((2^b - 1) / 2), q = clamp(round(w / scale), -2^(b-1), 2^(b-1) - 1). Asymmetric: the
    range is extended to contain 0, scale = (max - min) / (2^b - 1), with an integer zero point.
    """

    paper: ClassVar[Paper] = Paper(
        "Round to nearest (baseline of GPTQ and LLM.int8())", "baseline", "2210.17323"
    )

    clip_search: bool = Field(
        False, description="shrink the range of each group to the one with least |error|^2.4"
    )

    def workspace(self, weight: Tensor) -> int:
        return 2 * weight.numel() + chunked_bytes(weight.numel())  # codes, and once more unsigned

    def compress(self, target: Target, statistics: Statistics) -> WeightForm:
        weight, scheme = target.weight, self.scheme()
        scale, zero_point = fit_grid(weight, scheme, weight.dtype, search=self.clip_search)
        codes = quantize(weight, scale, zero_point, scheme)
        return PackedWeight.from_codes(codes, scale, zero_point, scheme, target.bias, weight.dtype)
