"""What a code without loss made of the weights of a checkpoint, and what it could have made at best."""

from __future__ import annotations

from pydantic import Field

from modicum.evaluate.saved import Record
from modicum.evaluate.speed import Spread


class CodedGroupRecord(Record):
    """Weights that are coded together.

    Attributes:
        name: of the group.
        weights: how many there are.
        nbytes: stored bytes.
        dense_nbytes: bytes of the original.
        bound: bits per weight below which no code for single bytes gets.
        information: bits of it that the coded byte carries, its entropy.
    """

    name: str
    weights: int
    nbytes: int
    dense_nbytes: int
    bound: float
    information: float


class CodingRecord(Record):
    """How the weights of a checkpoint are coded.

    Attributes:
        method: the storage step.
        dtype: of the weights.
        groups: what is coded together, without what stays as it is.
        raw: groups that stay as they are, and why.
        parts: stored bytes of all groups by what they hold, the coded bytes of all weights first.
        counts: how often each value of the coded byte occurs, 256 numbers; in bfloat16 and float32 it is the exponent.
        tensors: how many were compared with the original.
        difference: the first that was found; None if every bit is the same.
        changed_by: steps that changed weights before they were coded; then nothing was compared.
        decode: bytes of weights that are decoded in a second, group by group, from files that were read before; None
            if all groups are too small to tell.
        threads: that decoded.
    """

    method: str
    dtype: str
    groups: tuple[CodedGroupRecord, ...] = Field(min_length=1)
    raw: dict[str, str] = Field(default={})
    parts: dict[str, int]
    counts: tuple[int, ...] = Field(min_length=256, max_length=256)
    tensors: int = 0
    difference: str | None = None
    changed_by: tuple[str, ...] = ()
    decode: Spread | None = None
    threads: int = 1

    @property
    def identical(self) -> bool:
        """Whether all tensors were compared with the original, and every bit is the same."""
        return self.tensors > 0 and self.difference is None

    @property
    def weights(self) -> int:
        """How many are coded."""
        return sum(group.weights for group in self.groups)

    @property
    def nbytes(self) -> int:
        """Stored bytes of what is coded."""
        return sum(group.nbytes for group in self.groups)

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the original of what is coded."""
        return sum(group.dense_nbytes for group in self.groups)

    @property
    def bound(self) -> float:
        """Bits per coded weight below which no code for single bytes gets."""
        return sum(group.bound * group.weights for group in self.groups) / self.weights

    @property
    def information(self) -> float:
        """Bits that the coded byte of a weight carries, within its group."""
        return sum(group.information * group.weights for group in self.groups) / self.weights
