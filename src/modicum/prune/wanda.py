"""Wanda: weights times the norm of what they multiply."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from modicum.calibrate.statistics import Statistics
from modicum.method import Paper, Target
from modicum.prune.scored import Scored


class Wanda(Scored):
    """Prune by weight magnitude times input norm, compared within each output row; no weight is updated.

    Score: S_ij = |W_ij| * ||X_j||_2, X_j the j-th input channel over all calibration tokens. Every output row loses
    its int(sparsity * in_features) lowest scores; ties go to the lower index.
    """

    paper: ClassVar[Paper] = Paper(
        "A Simple and Effective Pruning Approach for Large Language Models", "ICLR 2024", "2306.11695"
    )
    by_row = True

    def statistics(self) -> frozenset[str]:
        return frozenset({"column_norm"})

    def scores(self, target: Target, statistics: Statistics) -> Tensor:
        return target.weight.float().abs() * statistics.column_norm  # [out, in]
