"""Patterns of zeros as a setting, and the weight form that a pruned matrix is stored in.

2:4      of every 4 consecutive inputs of a row 2 stay; says the sparsity as well
16x16    whole aligned blocks of 16 outputs by 16 inputs go, a fraction `sparsity` of them
row      whole output rows go, a fraction `sparsity` of them
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema
from torch import Tensor

from modicum.errors import InvalidSetting
from modicum.kernels.chunks import chunked_bytes
from modicum.kernels.selection import lowest_blocks, semi_structured
from modicum.method import Target
from modicum.weights.base import WeightForm, from_spec, make_spec
from modicum.weights.masked import MaskedWeight
from modicum.weights.properties import BlockPattern, NMPattern, Property
from modicum.weights.semi_structured import SemiStructuredWeight

LARGEST = 4096
"""Of the sides of a block."""


@dataclass(frozen=True)
class NM:
    """n of every m consecutive input channels stay."""

    n: int
    m: int

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def promise(self, sparsity: float) -> Property:
        """What holds for a layer pruned to this pattern."""
        return NMPattern(self.n, self.m)

    def pruned(self, scores: Tensor) -> Tensor:
        """Bool [rows, in], True at the m - n lowest scores of every aligned group of m columns."""
        return semi_structured(scores, self.n, self.m)

    def check(self, name: str, out_features: int, in_features: int) -> None:
        """Refuse the layer `name` if its inputs do not divide into groups of m."""
        if in_features % self.m:
            raise InvalidSetting(
                f"{name} has {in_features} inputs, which do not divide into groups of {self.m}.",
                "Leave such layers out with `skip`, or choose a sparsity instead of a pattern.",
            )

    def count(self, rows: int, columns: int, sparsity: float) -> int:
        """How many of rows * columns weights go."""
        return rows * columns // self.m * (self.m - self.n)


@dataclass(frozen=True)
class Blocks:
    """Blocks of `rows` outputs by `columns` inputs go as a whole; without `columns` they are as wide as the matrix."""

    rows: int
    columns: int | None

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}" if self.columns else "row"

    def promise(self, sparsity: float) -> Property:
        """What holds for a layer pruned to this pattern."""
        return BlockPattern(self.rows, self.columns, sparsity)

    def sums(self, scores: Tensor) -> Tensor:
        """The scores of each row summed over the width of every block, [rows, in] to float32 [rows, blocks]."""
        return scores.unflatten(1, (-1, self.columns or scores.shape[1])).sum(2, dtype=torch.float32)

    def pruned(self, sums: Tensor, in_features: int, sparsity: float) -> Tensor:
        """Bool [out, in], True in the blocks of the lowest scores.

        Args:
            sums: [out, blocks] of all rows.
            in_features: of the layer.
            sparsity: int(sparsity * blocks) of them go.
        """
        whole = sums.unflatten(0, (-1, self.rows)).sum(1)  # [out / rows, in / columns]
        return lowest_blocks(whole, int(sparsity * whole.numel()), self.rows, self.columns or in_features)

    def check(self, name: str, out_features: int, in_features: int) -> None:
        """Refuse the layer `name` if it does not divide into blocks."""
        if out_features % self.rows or in_features % (self.columns or in_features):
            raise InvalidSetting(
                f"{name} has {out_features}x{in_features} weights, which do not divide into blocks of {self}.",
                "Leave such layers out with `skip`, or choose another pattern.",
            )

    def count(self, rows: int, columns: int, sparsity: float) -> int:
        """How many of rows * columns weights go."""
        size = self.rows * (self.columns or columns)
        return int(sparsity * (rows * columns // size)) * size


def _parse(value: Any) -> NM | Blocks | None:
    if value is None or isinstance(value, NM | Blocks):
        return value
    text = str(value)
    if text == "row":
        return Blocks(1, None)
    groups, block = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text), re.fullmatch(r"(\d{1,9})x(\d{1,9})", text)
    if groups and 0 < int(groups[1]) < int(groups[2]) <= 64:
        return NM(int(groups[1]), int(groups[2]))
    if block and 0 < int(block[1]) <= LARGEST and 0 < int(block[2]) <= LARGEST:
        return Blocks(int(block[1]), int(block[2]))
    raise ValueError(
        "must look like 2:4 (n of m weights stay, 0 < n < m <= 64), "
        f"or like 16x16 (whole blocks, sides up to {LARGEST}), or be row"
    )


Pattern = Annotated[
    NM | Blocks | None,
    BeforeValidator(_parse),
    PlainSerializer(lambda value: value and str(value), return_type=str | None),
    WithJsonSchema({"type": ["string", "null"], "examples": ["2:4", "16x16", "row"]}),
]


def expected_form(weight: Tensor, pruned: int, pattern: NM | Blocks | None) -> WeightForm:
    """The form that `masked_form` will give a matrix, on the meta device.

    Args:
        weight: [out, in], on the meta device.
        pruned: how many weights go.
        pattern: the pattern that they follow, if any.
    """
    with torch.device("meta"):
        if isinstance(pattern, NM):
            return from_spec(make_spec(SemiStructuredWeight, weight, {"n": pattern.n, "m": pattern.m}))
        return from_spec(make_spec(MaskedWeight, weight, {"kept": weight.numel() - pruned}))


def workspace(weight: Tensor, pattern: NM | Blocks | None) -> int:
    """Bytes beside weight and result: mask, its inverse, with N:M a masked copy, and what a few rows need."""
    copy = weight.nbytes if isinstance(pattern, NM) else 0
    return 2 * weight.numel() + copy + chunked_bytes(weight.numel())


def scores_of(scores: Tensor, zeros: Tensor | None, value: float = -torch.inf) -> Tensor:
    """`scores` [out, in], changed in place: what an earlier step set to zero sinks below all else, it goes first."""
    return scores if zeros is None else scores.masked_fill_(zeros, value)


def masked_form(
    target: Target, pruned: Tensor, pattern: NM | Blocks | None, weight: Tensor | None = None
) -> WeightForm:
    """The stored form of a pruned matrix.

    Args:
        target: the layer; entries that it must keep at zero join the mask.
        pruned: bool [out, in], True where a weight goes.
        pattern: the pattern that `pruned` follows, if any.
        weight: [out, in] updated weights, zero where `pruned`; the layer's own by default.
    """
    if target.zeros is not None:
        pruned = pruned | target.zeros
    dense = target.weight if weight is None else weight.to(target.weight.dtype)
    if not isinstance(pattern, NM):
        return MaskedWeight.from_dense(dense, mask=~pruned, bias=target.bias)
    if weight is None:
        dense = dense.masked_fill(pruned, 0)
    return SemiStructuredWeight.from_dense(dense, pattern.n, pattern.m, bias=target.bias)
