"""What a step of a recipe can promise about the layers it has made, and later steps promise to keep.

A property names itself in words a person reads and can look for a violation: a sentence about what broke,
or None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from modicum.kernels.chunks import row_chunks
from modicum.weights.base import WeightForm
from modicum.weights.packed import PackedWeight


class Property(Protocol):
    """Something that holds for a layer, or does not."""

    @property
    def name(self) -> str:
        """What is promised, in words."""
        ...

    def violation(self, before: Tensor, after: WeightForm) -> str | None:
        """What is wrong with `after`, given the dense `before` [out, in]; None if the promise holds."""
        ...


@dataclass(frozen=True)
class ZeroMask:
    """Every zero stays zero."""

    @property
    def name(self) -> str:
        """What is promised, in words."""
        return "an exact zero mask"

    def violation(self, before: Tensor, after: WeightForm) -> str | None:
        """How many zeros came back to life."""
        dense = after.to_dense()
        if dense.shape != before.shape:
            return LayerShapes().violation(before, after)
        chunks = row_chunks(len(dense), dense.shape[1])
        revived = sum(int(((before[rows] == 0) & (dense[rows] != 0)).count_nonzero()) for rows in chunks)
        return f"{revived} pruned weights are no longer zero" if revived else None


@dataclass(frozen=True)
class NMPattern:
    """At most `n` nonzero weights in every aligned group of `m` inputs."""

    n: int
    m: int

    @property
    def name(self) -> str:
        """What is promised, in words."""
        return f"a {self.n}:{self.m} pattern"

    def violation(self, before: Tensor, after: WeightForm) -> str | None:
        """How many groups are too full."""
        dense = after.to_dense()
        full = sum(self._full(dense[rows]) for rows in row_chunks(len(dense), 8 * dense.shape[1]))
        return f"{full} groups of {self.m} have more than {self.n} nonzero weights" if full else None

    def _full(self, dense: Tensor) -> int:
        """How many groups of these rows have more than `n` nonzero weights."""
        nonzero = F.pad(dense != 0, (0, -dense.shape[1] % self.m))
        return int((nonzero.unflatten(1, (-1, self.m)).sum(-1) > self.n).count_nonzero())


@dataclass(frozen=True)
class BlockPattern(ZeroMask):
    """Of the aligned blocks of `rows` outputs by `columns` inputs, int(sparsity * blocks) at least are all zero.

    Whatever keeps zeros keeps this. Without `columns` a block is as wide as the matrix.
    """

    rows: int
    columns: int | None
    sparsity: float

    @property
    def name(self) -> str:
        """What is promised, in words."""
        kind = f"{self.rows}x{self.columns} blocks" if self.columns else "rows"
        return f"zeros in {self.sparsity!r} of its {kind}"

    def violation(self, before: Tensor, after: WeightForm) -> str | None:
        """How many blocks are all zero."""
        dense = after.to_dense()
        columns = self.columns or dense.shape[1]
        if dense.shape[0] % self.rows or dense.shape[1] % columns:
            return f"a matrix of {list(dense.shape)} does not divide into them"
        used = (dense != 0).unflatten(1, (-1, columns)).any(2).unflatten(0, (-1, self.rows)).any(1)
        zero, wanted = used.numel() - int(used.count_nonzero()), int(self.sparsity * used.numel())
        return f"{zero} of {used.numel()} are zero, not {wanted}" if zero < wanted else None


@dataclass(frozen=True)
class IntegerGrid:
    """Every weight is a whole multiple of its group's step, with at most 2**bits levels."""

    bits: int
    group_size: int = 128

    @property
    def name(self) -> str:
        """What is promised, in words."""
        return f"a {self.bits}-bit integer grid"

    def violation(self, before: Tensor, after: WeightForm) -> str | None:
        """How the weights left the grid."""
        if isinstance(after, PackedWeight):
            found = after.scheme
            if (found.bits, found.group_size) == (self.bits, self.group_size):
                return None
            return f"the grid has {found.bits} bits in groups of {found.group_size}"
        off = off_grid_groups(after.to_dense(), self.bits, self.group_size)
        return f"{off} groups of weights are not on a {self.bits}-bit grid" if off else None


@dataclass(frozen=True)
class TiedWeights:
    """Modules that shared one tensor still share it: a matter of the model, no single layer can break it."""

    @property
    def name(self) -> str:
        """What is promised, in words."""
        return "tied weights"

    def violation(self, before: Tensor, after: WeightForm) -> str | None:
        """Nothing to see in one layer."""
        return None


@dataclass(frozen=True)
class LayerShapes:
    """The matrix keeps its shape."""

    @property
    def name(self) -> str:
        """What is promised, in words."""
        return "layer shapes"

    def violation(self, before: Tensor, after: WeightForm) -> str | None:
        """The two shapes."""
        shape = [after.out_features, after.in_features]
        return (
            None if shape == list(before.shape) else f"the shape changed from {list(before.shape)} to {shape}"
        )


def off_grid_groups(weight: Tensor, bits: int, group_size: int) -> int:
    """How many groups of a dense matrix [out, in] cannot have come from an integer grid of `bits` bits.

    The step of the grid is unknown, but the largest weight is a whole number of steps, at most 2**bits - 1:
    every such number is tried. What rounding to the dtype of `weight` can hide (8 bits in bfloat16) cannot
    be noticed.
    """
    chunks = row_chunks(len(weight), 16 * weight.shape[1])  # the trial of a step holds several temporaries
    return sum(_off_grid_groups(weight[rows], bits, group_size) for rows in chunks)


def _off_grid_groups(weight: Tensor, bits: int, group_size: int) -> int:
    span = weight.shape[1] if group_size == -1 else min(group_size, weight.shape[1])
    groups = F.pad(weight.float(), (0, -weight.shape[1] % span)).view(-1, span)  # [out * groups, span]
    # the weight and the largest one were rounded to the dtype, the two divisions below to float32
    relative_error = torch.finfo(weight.dtype).eps + torch.finfo(torch.float32).eps
    most = (1 << bits) - 1
    for largest in range(1, most + 1):
        if not len(groups):
            break
        step = groups.abs().amax(1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny) / largest
        multiples = groups / step
        whole = multiples.round()
        close = (multiples - whole).abs() <= relative_error * (multiples.abs() + 1)
        fits = close.all(1) & (whole.amax(1).clamp(min=0) - whole.amin(1).clamp(max=0) <= most)
        groups = groups[~fits]
    return len(groups)
