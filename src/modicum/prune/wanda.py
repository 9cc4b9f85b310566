"""Wanda: weights times the norm of what they multiply."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from modicum.calibrate.statistics import Statistics
from modicum.kernels.chunks import by_rows
from modicum.kernels.selection import prune_lowest
from modicum.method import LayerMethod, Paper, Target
from modicum.prune.pattern import Pattern, expected_form, masked_form, scores_of, workspace
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

    def workspace(self, weight: Tensor) -> int:
        return workspace(weight, self.pattern)

    def compress(self, target: Target, statistics: Statistics) -> WeightForm:
        norm = statistics.column_norm  # [in]

        def some_rows(weight: Tensor, zeros: Tensor | None) -> Tensor:
            return self._pruned(target.name, scores_of(weight.float().abs() * norm, zeros))

        pruned = by_rows(some_rows, target.weight, target.zeros, row_bytes=4 * len(norm))
        return masked_form(target, pruned, self.pattern)

    def _pruned(self, name: str, scores: Tensor) -> Tensor:
        """Bool [rows, in], True at the scores that lose."""
        if self.pattern:
            return self.pattern.pruned(name, scores)
        return prune_lowest(scores, self._per_row(scores))

    def _per_row(self, matrix: Tensor) -> int:
        return int(self.sparsity * matrix.shape[1])
