"""Magnitude pruning: the smallest weights go."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from modicum.calibrate.statistics import Statistics
from modicum.kernels.selection import prune_lowest_global
from modicum.method import Paper, Target
from modicum.prune.scored import Scored


class Magnitude(Scored):
    """Set the smallest weights of each matrix to zero; needs no data.

    Score of a weight: S_ij = |W_ij|. With `scope="matrix"` the threshold is taken over the whole matrix, exactly
    int(sparsity * numel) weights go; with `scope="row"` every output row loses int(sparsity * in_features) weights.
    An N:M pattern ("2:4": two of four consecutive inputs stay) replaces the sparsity.
    """

    paper: ClassVar[Paper] = Paper(
        "Learning both Weights and Connections for Efficient Neural Networks", "NeurIPS 2015", "1506.02626"
    )

    scope: Literal["matrix", "row"] = Field("matrix", description="what the weights compete within")

    def workspace(self, weight: Tensor) -> int:
        return weight.nbytes + super().workspace(weight)  # the scores

    def scores(self, target: Target, statistics: Statistics) -> Tensor:
        return target.weight.abs()

    def lowest(self, scores: Tensor) -> Tensor:
        if self.scope == "row":
            return super().lowest(scores)
        return prune_lowest_global(scores, self.count(*scores.shape))

    def count(self, rows: int, columns: int) -> int:
        if self.scope == "row":
            return super().count(rows, columns)
        return int(self.sparsity * (rows * columns))
