"""What methods share that give every weight a score and remove the lowest ones, updating no weight."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from modicum.calibrate.statistics import Statistics
from modicum.kernels.chunks import by_rows
from modicum.kernels.selection import prune_lowest
from modicum.method import Target
from modicum.prune.pattern import NM, Blocks, masked_form, scores_of
from modicum.prune.sparse import Sparse
from modicum.weights.base import WeightForm


class Scored(Sparse):
    """Weights compete by their scores within each output row, or within the groups of a pattern.

    Blocks of weights compete within the matrix, by the sum of their scores.

    Attributes:
        by_row: whether the scores of a row depend on that row alone: then a few rows are scored at a time.
    """

    by_row: ClassVar[bool] = False

    @abstractmethod
    def scores(self, target: Target, statistics: Statistics) -> Tensor:
        """The score of every weight, [out, in] of a real dtype; a new tensor, which may be overwritten."""

    def compress(self, target: Target, statistics: Statistics) -> WeightForm:
        self.check(target)

        def some_rows(weight: Tensor, zeros: Tensor | None) -> Tensor:
            return self._judged(self.scores(replace(target, weight=weight, zeros=zeros), statistics), zeros)

        if self.by_row:
            row_bytes = 4 * target.weight.shape[1]
            judged = by_rows(some_rows, target.weight, target.zeros, row_bytes=row_bytes)
        else:
            judged = some_rows(target.weight, target.zeros)
        if isinstance(self.pattern, Blocks):
            judged = self.pattern.pruned(judged, target.weight.shape[1], self.sparsity)
        return masked_form(target, judged, self.pattern)

    def _judged(self, scores: Tensor, zeros: Tensor | None) -> Tensor:
        """Bool [rows, in], True where a weight goes; for blocks the sums of their scores within each row."""
        if isinstance(self.pattern, Blocks):
            return self.pattern.sums(scores_of(scores, zeros, 0))
        scores = scores_of(scores, zeros)
        return self.pattern.pruned(scores) if isinstance(self.pattern, NM) else self.lowest(scores)

    def lowest(self, scores: Tensor) -> Tensor:
        """Bool [rows, in], True at the scores that lose when there is no pattern."""
        return prune_lowest(scores, int(self.sparsity * scores.shape[1]))

    def count(self, rows: int, columns: int) -> int:
        return rows * int(self.sparsity * columns)
