"""What methods share that prune during a column sweep, in which the weights that are left make up for those that go."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from modicum.method import LayerMethod
from modicum.prune.pattern import Pattern, expected_form
from modicum.weights.base import WeightForm
from modicum.weights.properties import NMPattern, Property, ZeroMask


class CompensatedPruning(LayerMethod):
    """Reads the Gram matrix; a block of columns loses an exact share of its weights, or every group those of N:M."""

    keeps = (ZeroMask, NMPattern)

    sparsity: float = Field(0.5, ge=0, lt=1, description="fraction of the weights that become zero")
    pattern: Pattern = Field(
        None, description="N:M pattern such as 2:4, N of M weights stay; replaces sparsity"
    )
    damp: float = Field(0.01, gt=0, le=1, description="fraction of the mean diagonal added to the Hessian")
    block_size: int = Field(128, ge=1, description="columns whose mask is chosen together")

    def gives(self) -> tuple[Property, ...]:
        return self.pattern.gives() if self.pattern else (ZeroMask(),)

    def statistics(self) -> frozenset[str]:
        return frozenset({"gram"})

    def expected_form(self, weight: Tensor) -> WeightForm:
        rows, columns = weight.shape
        widths = [min(self.block_size, columns - start) for start in range(0, columns, self.block_size)]
        return expected_form(weight, sum(int(self.sparsity * rows * width) for width in widths), self.pattern)
