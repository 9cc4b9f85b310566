"""Wanda: weights times the norm of what they multiply."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from modicum.calibrate.statistics import Statistics
from modicum.kernels.selection import prune_lowest
from modicum.method import LayerMethod, Paper, Target
from modicum.prune.pattern import Pattern, expected_form, masked_form, scores_of
from modicum.weights.base import WeightForm
from modicum.weights.properties import NMPattern, Property, ZeroMask


class Wanda(LayerMethod):
    """Prune by weight magnitude times input norm, compared within each output row; no weight is updated.

    Score: S_ij = |W_ij| * ||X_j||_2, X_j the j-th input channel over all calibration tokens. Every output row loses
    its int(sparsity * in_features) lowest scores; ties go to the lower index.
    """

    paper: ClassVar[Paper] = Paper(
        "A Simple and Effective Pruning Approach for Large Language Models", "ICLR 2024", "2306.11695"
    )
    keeps = (ZeroMask, NMPattern)

    sparsity: float = Field(0.5, ge=0, lt=1, description="fraction of every output row that becomes zero")
    pattern: Pattern = Field(
        None, description="N:M pattern such as 2:4, N of M weights stay; replaces sparsity"
    )

    def gives(self) -> tuple[Property, ...]:
        return self.pattern.gives() if self.pattern else (ZeroMask(),)

    def statistics(self) -> frozenset[str]:
        return frozenset({"column_norm"})

    def expected_form(self, weight: Tensor) -> WeightForm:
        return expected_form(weight, weight.shape[0] * self._per_row(weight), self.pattern)

    def compress(self, target: Target, statistics: Statistics) -> WeightForm:
        scores = scores_of(target, target.weight.float().abs() * statistics.column_norm)  # [out, in]
        if self.pattern:
            pruned = self.pattern.pruned(target.name, scores)
        else:
            pruned = prune_lowest(scores, self._per_row(scores))
        return masked_form(target, pruned, self.pattern)

    def _per_row(self, matrix: Tensor) -> int:
        return int(self.sparsity * matrix.shape[1])
