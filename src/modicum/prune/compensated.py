"""What methods share that prune during a column sweep, in which the weights that are left make up for those that go."""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

from pydantic import Field, model_validator
from torch import Tensor

from modicum.kernels.selectors import BlockStructured, Keeping, Selector, Unstructured
from modicum.prune.pattern import NM, Blocks
from modicum.prune.sparse import Sparse


class CompensatedPruning(Sparse):
    """Reads the Gram matrix; a block of columns loses an exact share of its weights, or every group those of N:M."""

    damp: float = Field(0.01, gt=0, le=1, description="fraction of the mean diagonal added to the Hessian")
    block_size: int = Field(128, ge=1, description="columns whose mask is chosen together")

    @model_validator(mode="after")
    def _leaves_something_in_every_row(self) -> Self:
        if isinstance(self.pattern, Blocks) and self.pattern.columns is None:
            raise ValueError(
                "pattern: a whole row leaves no weight that could make up for it; "
                "prune rows with prune.wanda or prune.magnitude"
            )
        return self

    def statistics(self) -> frozenset[str]:
        return frozenset({"gram"})

    def count(self, rows: int, columns: int) -> int:
        widths = [min(self.block_size, columns - start) for start in range(0, columns, self.block_size)]
        return sum(int(self.sparsity * rows * width) for width in widths)

    @abstractmethod
    def groups(self, pattern: NM, factor: Tensor) -> Selector:
        """What chooses the mask of N:M groups.

        Args:
            pattern: N and M.
            factor: U of `inverse_cholesky`, [in, in].
        """

    def selector(self, factor: Tensor, zeros: Tensor | None) -> Selector:
        """What chooses the mask as the sweep goes on; `zeros`, bool [out, in], are in it already."""
        own = self._own_selector(factor)
        return own if zeros is None else Keeping(own, zeros)

    def _own_selector(self, factor: Tensor) -> Selector:
        if isinstance(self.pattern, NM):
            return self.groups(self.pattern, factor)
        if self.pattern is not None and self.pattern.columns is not None:
            shape = (self.pattern.rows, self.pattern.columns)
            return BlockStructured(self.sparsity, *shape, self.block_size)
        return Unstructured(self.sparsity, self.block_size)
