"""N:M patterns as a setting, and the weight form that a pruned matrix is stored in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema
from torch import Tensor

from modicum.errors import InvalidSetting
from modicum.kernels.chunks import chunked_bytes
from modicum.kernels.selection import semi_structured
from modicum.method import Target
from modicum.weights.base import WeightForm, from_spec, make_spec
from modicum.weights.masked import MaskedWeight
from modicum.weights.properties import NMPattern, Property, ZeroMask
from modicum.weights.semi_structured import SemiStructuredWeight


@dataclass(frozen=True)
class NM:
    """n of every m consecutive input channels stay."""

    n: int
    m: int

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def gives(self) -> tuple[Property, ...]:
        """What a layer pruned to this pattern promises."""
        return (ZeroMask(), NMPattern(self.n, self.m))

    def pruned(self, name: str, scores: Tensor) -> Tensor:
        """Bool [out, in], True at the m - n lowest scores of every aligned group of m columns.

        Raises:
            InvalidSetting: the inputs of the layer `name` do not divide into groups of m.
        """
        self.check(name, scores.shape[1])
        return semi_structured(scores, self.n, self.m)

    def check(self, name: str, in_features: int) -> None:
        """Refuse a layer whose inputs do not divide into groups of m."""
        if in_features % self.m:
            raise InvalidSetting(
                f"{name} has {in_features} inputs, which do not divide into groups of {self.m}.",
                "Leave such layers out with `skip`, or choose a sparsity instead of a pattern.",
            )


def _parse(value: Any) -> NM | None:
    if value is None or isinstance(value, NM):
        return value
    match = re.fullmatch(r"(\d+):(\d+)", str(value))
    if not match or not 0 < int(match[1]) < int(match[2]) <= 64:
        raise ValueError("must look like 2:4 (n of m weights stay, 0 < n < m <= 64)")
    return NM(int(match[1]), int(match[2]))


Pattern = Annotated[
    NM | None,
    BeforeValidator(_parse),
    PlainSerializer(lambda value: value and str(value), return_type=str | None),
    WithJsonSchema({"type": ["string", "null"], "pattern": r"^\d+:\d+$"}),
]


def expected_form(weight: Tensor, pruned: int, pattern: NM | None) -> WeightForm:
    """The form that `masked_form` will give a matrix, on the meta device.

    Args:
        weight: [out, in], on the meta device.
        pruned: how many weights go if there is no pattern.
        pattern: the N:M pattern, if any.

    Raises:
        InvalidSetting: the inputs do not divide into the groups of the pattern.
    """
    with torch.device("meta"):
        if pattern:
            pattern.check(f"A layer of {weight.shape[0]} outputs", weight.shape[1])
            return from_spec(make_spec(SemiStructuredWeight, weight, {"n": pattern.n, "m": pattern.m}))
        return from_spec(make_spec(MaskedWeight, weight, {"kept": weight.numel() - pruned}))


def workspace(weight: Tensor, pattern: NM | None) -> int:
    """Bytes beside weight and result: mask, its inverse, with a pattern a masked copy, and what a few rows need."""
    copy = weight.nbytes if pattern else 0
    return 2 * weight.numel() + copy + chunked_bytes(weight.numel())


def scores_of(scores: Tensor, zeros: Tensor | None) -> Tensor:
    """`scores` [out, in], changed in place: what an earlier step set to zero sinks below all else, it goes first."""
    return scores if zeros is None else scores.masked_fill_(zeros, -torch.inf)


def masked_form(
    target: Target, pruned: Tensor, pattern: NM | None, weight: Tensor | None = None
) -> WeightForm:
    """The stored form of a pruned matrix.

    Args:
        target: the layer; entries that it must keep at zero join the mask.
        pruned: bool [out, in], True where a weight goes.
        pattern: the N:M pattern that `pruned` follows, if any.
        weight: [out, in] updated weights, zero where `pruned`; the layer's own by default.
    """
    if target.zeros is not None:
        pruned = pruned | target.zeros
    dense = target.weight if weight is None else weight.to(target.weight.dtype)
    if not pattern:
        return MaskedWeight.from_dense(dense, mask=~pruned, bias=target.bias)
    if weight is None:
        dense = dense.masked_fill(pruned, 0)
    return SemiStructuredWeight.from_dense(dense, pattern.n, pattern.m, bias=target.bias)
