"""APT: choose zeros as one removes them, and give every row the best weights that are left for its whole set of zeros.

SparseGPT removes many weights with a formula derived for removing one, and corrects only the columns that come later.
APT solves the removal of the set p at once, with the error L(p) that this leaves:

    w <- w - w_p [(H^-1)_pp]^-1 (H^-1)_p,:        L(p) = w_p [(H^-1)_pp]^-1 w_p^T / 2

Without a pattern the mask is chosen by single removals while the sweep goes on (SM in the paper); with N:M every
group takes the set of least L(p) (MM). Nearly all that there is to gain lies in the final update, in which the weights
on both sides of a zero move: it is solved for whole rows (`modicum.kernels.refit`) once the mask stands.

Zhao et al., Pruning Foundation Models for High Accuracy without Retraining, Findings of EMNLP 2024, arXiv 2410.15567.
Departures: the update is the paper's, found by conjugate gradients instead of an inverse per row; N:M groups are
chosen on weights that already make up for the groups before them.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from modicum.calibrate.statistics import Statistics
from modicum.kernels.cholesky import damped, inverse_cholesky
from modicum.kernels.compensation import solver_bytes, sweep
from modicum.kernels.refit import refit, refit_bytes
from modicum.kernels.selectors import JointSemiStructured, Selector
from modicum.method import Paper, Target
from modicum.prune.compensated import CompensatedPruning
from modicum.prune.pattern import NM, masked_form
from modicum.weights.base import WeightForm


class APT(CompensatedPruning):
    """Prune like SparseGPT, then give every row the best weights for its whole set of zeros.

    H = X^T X + damp mean(diag) I. Mask: the smallest w^2 / (H^-1)_jj of each block of columns, or with N:M the set p of
    least w_p [(H^-1)_pp]^-1 w_p^T in each group. Then W' = argmin tr((W' - W) H (W' - W)^T) under that mask.
    """

    paper: ClassVar[Paper] = Paper(
        "Pruning Foundation Models for High Accuracy without Retraining", "EMNLP Findings 2024", "2410.15567"
    )
    tolerance: float = Field(
        0.01, ge=0, lt=1, description="the update stops when a step gains less than this share of all steps"
    )
    steps: int = Field(50, ge=1, description="steps of the update at most")

    def workspace(self, weight: Tensor) -> int:
        swept = 4 * weight.numel() + weight.numel()  # result and mask of the sweep
        stored = swept + weight.nbytes + super().workspace(weight)
        return max(solver_bytes(*weight.shape), swept + refit_bytes(*weight.shape), stored)

    def compress(self, target: Target, statistics: Statistics) -> WeightForm:
        self.check(target)
        factor, dead, damp = inverse_cholesky(statistics.gram, self.damp)  # U [in, in]
        weight = target.weight.masked_fill(dead, 0) if bool(dead.any()) else target.weight
        swept = sweep(
            weight, factor, selector=self.selector(factor, target.zeros), block_size=self.block_size
        )
        del factor
        assert swept.mask is not None
        gram = damped(statistics.gram, dead, damp)
        best = refit(weight, swept.weight, swept.mask, gram, tolerance=self.tolerance, steps=self.steps)
        return masked_form(target, swept.mask, self.pattern, best)

    def groups(self, pattern: NM, factor: Tensor) -> Selector:
        return JointSemiStructured(pattern.n, pattern.m, factor)
