"""Uniform integer grids: which numbers a group of weights may take, and the nearest of them.

`group_size` consecutive inputs of one output row share a scale, and an asymmetric grid also shares a zero
point: w ~ (q - z) * scale with signed codes q in [-2**(bits-1), 2**(bits-1) - 1], as compressed-tensors
stores them. Symmetric grids have z = 0 and scale = amax / ((2**bits - 1) / 2), e.g. amax / 7.5 for 4 bits.
The scale is rounded to the dtype in which it is stored *before* anything is quantised with it, so what was
measured is what gets exported. Zero is always exactly on the grid, which is what lets a pruning mask
survive quantisation.

The optional clip search shrinks the range of each group and keeps the p = 1 - i / 100, i < 80, with the least
sum |w' - w| ** 2.4 (GPTQ, arXiv 2210.17323, released code).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from modicum.errors import InvalidSetting
from modicum.kernels.chunks import by_rows, row_chunks


@dataclass(frozen=True)
class IntegerScheme:
    """A uniform integer grid per group of weights.

    Args:
        bits: 2 to 8.
        group_size: consecutive inputs that share a scale; -1 means the whole row.
        symmetric: without zero point.

    Raises:
        InvalidSetting: bits or group size out of range.
    """

    bits: int
    group_size: int = 128
    symmetric: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise InvalidSetting(
                f"An integer grid of {self.bits} bits does not exist.", "Set bits from 2 to 8."
            )
        if self.group_size < 1 and self.group_size != -1:
            raise InvalidSetting(
                f"group_size {self.group_size} is not a number of weights.",
                "Set group_size to 32, 64 or 128, or to -1 for one scale per row.",
            )

    @property
    def lowest(self) -> int:
        """The smallest signed code."""
        return -(1 << (self.bits - 1))

    @property
    def highest(self) -> int:
        """The largest signed code."""
        return (1 << (self.bits - 1)) - 1

    def span(self, in_features: int) -> int:
        """Weights per group in a row of `in_features`."""
        return in_features if self.group_size == -1 else min(self.group_size, in_features)

    def groups(self, in_features: int) -> int:
        """Groups in a row of `in_features`; the last may be short."""
        return -(-in_features // max(self.span(in_features), 1))


def group_index(in_features: int, scheme: IntegerScheme, device: torch.device | None = None) -> Tensor:
    """The group of each input column: int64 [in]."""
    return torch.arange(in_features, device=device) // scheme.span(in_features)


def expand_groups(values: Tensor, in_features: int, scheme: IntegerScheme) -> Tensor:
    """Repeat one value per group, [out, groups], for every column of it: [out, in]."""
    return values[:, group_index(in_features, scheme, values.device)]


def fit_grid(
    weight: Tensor, scheme: IntegerScheme, scale_dtype: torch.dtype, *, search: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The grid of every group of `weight`.

    Args:
        weight: finite, any float dtype, [out, in].
        scheme: bits, group size and symmetry.
        scale_dtype: dtype in which the scale is stored; the scale is rounded to it first.
        search: look for the range that loses least instead of taking minimum and maximum.

    Returns:
        scale `scale_dtype` [out, groups], positive; zero point int32 [out, groups], None for a symmetric
        scheme.
    """
    rows, width = weight.shape
    scale = weight.new_empty(rows, scheme.groups(width), dtype=scale_dtype)
    zero_point = torch.empty_like(scale, dtype=torch.int32)
    for chunk in row_chunks(rows, 4 * width):
        scale[chunk], zero_point[chunk] = _fit_rows(weight[chunk], scheme, scale_dtype, search)
    return scale, None if scheme.symmetric else zero_point


def _fit_rows(
    weight: Tensor, scheme: IntegerScheme, scale_dtype: torch.dtype, search: bool
) -> tuple[Tensor, Tensor]:
    """Scale and zero point [rows, groups] of some rows; the zero points of a symmetric scheme are 0."""
    grouped = _grouped(weight.float(), scheme)  # [rows, groups, span]
    low = grouped.amin(-1).clamp_(max=0.0)
    high = grouped.amax(-1).clamp_(min=0.0)
    if search:
        return _clip_search(grouped, low, high, scheme, scale_dtype)
    return _grid_of_range(low, high, scheme, scale_dtype)


def quantize(weight: Tensor, scale: Tensor, zero_point: Tensor | None, scheme: IntegerScheme) -> Tensor:
    """The nearest code of every weight.

    Args:
        weight: any float dtype, [out, in].
        scale: [out, groups].
        zero_point: int32 [out, groups] or None.

    Returns:
        int8 [out, in], in [-2**(bits-1), 2**(bits-1) - 1].
    """

    def some_rows(weight: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
        codes = _steps(_grouped(weight.float(), scheme), scale.float(), zero_point, scheme)
        if zero_point is not None:
            codes += zero_point.unsqueeze(-1)
        return codes.flatten(1)[:, : weight.shape[1]].to(torch.int8)

    return by_rows(some_rows, weight, scale, zero_point, row_bytes=4 * weight.shape[1])


def dequantize(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None, scheme: IntegerScheme, dtype: torch.dtype
) -> Tensor:
    """The weights that codes stand for: (codes - zero_point) * scale, rounded once to `dtype`.

    Args:
        codes: int8 [out, in].
        scale: [out, groups].
        zero_point: int32 [out, groups] or None.

    Returns:
        `dtype` [out, in].
    """
    # codes and zero points have at most 8 significant bits, so even bfloat16 holds their difference exactly
    work = dtype if scale.dtype == dtype else torch.float32

    def some_rows(codes: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
        steps = _grouped(codes.to(work), scheme)  # [rows, groups, span]
        if zero_point is not None:
            steps -= zero_point.to(work).unsqueeze(-1)
        steps *= scale.to(work).unsqueeze(-1)
        return steps.flatten(1)[:, : codes.shape[1]].to(dtype).contiguous()

    return by_rows(some_rows, codes, scale, zero_point, row_bytes=4 * codes.shape[1])


def nearest(weight: Tensor, scheme: IntegerScheme, scale_dtype: torch.dtype) -> Tensor:
    """The nearest point of its group's grid for every weight: float32 [out, in].

    Args:
        weight: finite, any float dtype, [out, in].
        scheme: bits, group size and symmetry.
        scale_dtype: dtype in which the scale is stored.
    """

    def some_rows(weight: Tensor) -> Tensor:
        scale, zero_point = fit_grid(weight, scheme, scale_dtype)
        codes = quantize(weight, scale, zero_point, scheme)
        return dequantize(codes, scale, zero_point, scheme, torch.float32)

    return by_rows(some_rows, weight, row_bytes=4 * weight.shape[1])


def _grouped(values: Tensor, scheme: IntegerScheme) -> Tensor:
    """[out, in] to [out, groups, span] with zeros behind the last column, which never widen a range."""
    span = scheme.span(values.shape[1])
    missing = -values.shape[1] % span
    padded = F.pad(values, (0, missing)) if missing else values
    return padded.unflatten(1, (-1, span))


def _grid_of_range(
    low: Tensor, high: Tensor, scheme: IntegerScheme, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Scale and zero point for groups whose values span [low, high], low <= 0 <= high."""
    steps = scheme.highest - scheme.lowest  # 2**bits - 1
    span = 2 * torch.maximum(-low, high) if scheme.symmetric else high - low
    limits = torch.finfo(scale_dtype)
    scale = (span / steps).clamp_(limits.tiny, limits.max)
    scale = scale.masked_fill_(span == 0, 1.0).to(scale_dtype)
    if scheme.symmetric:
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    zero_point = (scheme.lowest - low / scale.float()).round_().clamp_(scheme.lowest, scheme.highest)
    return scale, zero_point.to(torch.int32)


def _steps(grouped: Tensor, scale: Tensor, zero_point: Tensor | None, scheme: IntegerScheme) -> Tensor:
    """codes - zero_point of grouped weights, floats [out, groups, span]: rounded multiples of the scale."""
    steps = (grouped / scale.unsqueeze(-1)).round_()
    if zero_point is None:
        return steps.clamp_(scheme.lowest, scheme.highest)
    zero = zero_point.unsqueeze(-1)
    return steps.clamp_((scheme.lowest - zero).float(), (scheme.highest - zero).float())


def _clip_search(
    grouped: Tensor, low: Tensor, high: Tensor, scheme: IntegerScheme, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The grid of the shrunken range, out of 80, whose error sum |w' - w| ** 2.4 is least."""
    best_scale, best_zero = _grid_of_range(low, high, scheme, scale_dtype)
    best_error = torch.full_like(low, torch.inf)
    for i in range(80):
        p = 1 - i / 100
        scale, zero_point = _grid_of_range(p * low, p * high, scheme, scale_dtype)
        kept_zero = None if scheme.symmetric else zero_point
        restored = _steps(grouped, scale.float(), kept_zero, scheme) * scale.float().unsqueeze(-1)
        error = restored.sub_(grouped).abs_().pow_(2.4).sum(-1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero_point, best_zero)
    return best_scale, best_zero
