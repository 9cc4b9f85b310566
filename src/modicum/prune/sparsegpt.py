"""SparseGPT: prune column by column, and let the columns that are left make up for it."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from modicum.calibrate.statistics import Statistics
from modicum.kernels.compensation import Swept, inverse_cholesky, solver_bytes, sweep
from modicum.kernels.selectors import Selector, SemiStructured
from modicum.method import Paper, Target
from modicum.prune.compensated import CompensatedPruning
from modicum.prune.pattern import NM, masked_form
from modicum.weights.base import WeightForm


class SparseGPT(CompensatedPruning):
    """Prune with second-order saliency and update the surviving weights so that the layer's output changes least.

    With H = X^T X + damp mean(diag) I and U the upper Cholesky factor of H^-1, the mask of each block of columns is
    the int(sparsity * entries) smallest w^2 / U_jj^2 over all rows of the block; a pruned w in column j spreads its
    error over the later columns, W[:, j:] -= (w / U_jj) U[j, j:]. With N:M the mask is chosen at every M-th column.
    """

    paper: ClassVar[Paper] = Paper(
        "SparseGPT: Massive Language Models Can be Accurately Pruned in One-Shot", "ICML 2023", "2301.00774"
    )

    def workspace(self, weight: Tensor) -> int:
        stored = 4 * weight.numel() + weight.nbytes + super().workspace(weight)  # the sweep's float32 result
        return max(solver_bytes(*weight.shape), stored)

    def compress(self, target: Target, statistics: Statistics) -> WeightForm:
        self.check(target)
        swept = self._swept(target, statistics)
        assert swept.mask is not None
        return masked_form(target, swept.mask, self.pattern, swept.weight)

    def _swept(self, target: Target, statistics: Statistics) -> Swept:
        factor, dead, _ = inverse_cholesky(statistics.gram, self.damp)  # U [in, in]
        weight = target.weight.masked_fill(dead, 0) if bool(dead.any()) else target.weight
        return sweep(weight, factor, selector=self.selector(factor, target.zeros), block_size=self.block_size)

    def groups(self, pattern: NM, factor: Tensor) -> Selector:
        return SemiStructured(pattern.n, pattern.m)
