"""What methods share that give every weight a score and remove the lowest ones, updating no weight."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from modicum.calibrate.statistics import Statistics
from modicum.kernels.chunks import by_rows
from modicum.kernels.selection import prune_lowest
from modicum.method import LayerMethod, Target
from modicum.prune.pattern import Pattern, expected_form, masked_form, scores_of, workspace
from modicum.weights.base import WeightForm
from modicum.weights.properties import NMPattern, Property, ZeroMask


class Scored(LayerMethod):
    """Weights compete by their scores within each output row, or within the groups of a pattern.

    Attributes:
        by_row: whether the scores of a row depend on that row alone: then a few rows are scored at a time.
    """

    keeps = (ZeroMask, NMPattern)
    by_row: ClassVar[bool] = False

    sparsity: float = Field(0.5, ge=0, lt=1, description="fraction of the weights that become zero")
    pattern: Pattern = Field(
        None, description="N:M pattern such as 2:4, N of M weights stay; replaces sparsity"
    )

    @abstractmethod
    def scores(self, target: Target, statistics: Statistics) -> Tensor:
        """The score of every weight, [out, in] of a real dtype; a new tensor, which may be overwritten."""

    def gives(self) -> tuple[Property, ...]:
        return self.pattern.gives() if self.pattern else (ZeroMask(),)

    def expected_form(self, weight: Tensor) -> WeightForm:
        return expected_form(weight, self.count(*weight.shape), self.pattern)

    def workspace(self, weight: Tensor) -> int:
        return workspace(weight, self.pattern)

    def compress(self, target: Target, statistics: Statistics) -> WeightForm:
        def some_rows(weight: Tensor, zeros: Tensor | None) -> Tensor:
            part = replace(target, weight=weight, zeros=zeros)
            return self._pruned(part, scores_of(self.scores(part, statistics), zeros))

        if self.by_row:
            row_bytes = 4 * target.weight.shape[1]
            pruned = by_rows(some_rows, target.weight, target.zeros, row_bytes=row_bytes)
        else:
            pruned = some_rows(target.weight, target.zeros)
        return masked_form(target, pruned, self.pattern)

    def _pruned(self, target: Target, scores: Tensor) -> Tensor:
        if self.pattern:
            return self.pattern.pruned(target.name, scores)
        return self.lowest(scores)

    def lowest(self, scores: Tensor) -> Tensor:
        """Bool [rows, in], True at the scores that lose when there is no pattern."""
        return prune_lowest(scores, int(self.sparsity * scores.shape[1]))

    def count(self, rows: int, columns: int) -> int:
        """How many of rows * columns weights lose when there is no pattern."""
        return rows * int(self.sparsity * columns)
