"""Magnitude pruning: the smallest weights go."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from modicum.calibrate.statistics import Statistics
from modicum.kernels.selection import prune_lowest, prune_lowest_global
from modicum.method import LayerMethod, Paper, Target
from modicum.prune.pattern import Pattern, expected_form, masked_form, scores_of, workspace
from modicum.weights.base import WeightForm
from modicum.weights.properties import NMPattern, Property, ZeroMask


class Magnitude(LayerMethod):
    """Set the smallest weights of each matrix to zero; needs no data.

    Score of a weight: S_ij = |W_ij|. With `scope="matrix"` the threshold is taken over the whole matrix, exactly
    int(sparsity * numel) weights go; with `scope="row"` every output row loses int(sparsity * in_features) weights.
    An N:M pattern ("2:4": two of four consecutive inputs stay) replaces the sparsity.
    """

    paper: ClassVar[Paper] = Paper(
        "Learning both Weights and Connections for Efficient Neural Networks", "NeurIPS 2015", "1506.02626"
    )
    keeps = (ZeroMask, NMPattern)

    sparsity: float = Field(0.5, ge=0, lt=1, description="fraction of the weights that become zero")
    pattern: Pattern = Field(
        None, description="N:M pattern such as 2:4, N of M weights stay; replaces sparsity"
    )
    scope: Literal["matrix", "row"] = Field("matrix", description="what the weights compete within")

    def gives(self) -> tuple[Property, ...]:
        return self.pattern.gives() if self.pattern else (ZeroMask(),)

    def expected_form(self, weight: Tensor) -> WeightForm:
        rows, columns = weight.shape
        pruned = self._count(columns) * rows if self.scope == "row" else self._count(weight.numel())
        return expected_form(weight, pruned, self.pattern)

    def workspace(self, weight: Tensor) -> int:
        return weight.nbytes + workspace(weight, self.pattern)  # the scores

    def compress(self, target: Target, statistics: Statistics) -> WeightForm:
        scores = scores_of(target.weight.abs(), target.zeros)  # [out, in]
        if self.pattern:
            pruned = self.pattern.pruned(target.name, scores)
        elif self.scope == "row":
            pruned = prune_lowest(scores, self._count(scores.shape[1]))
        else:
            pruned = prune_lowest_global(scores, self._count(scores.numel()))
        return masked_form(target, pruned, self.pattern)

    def _count(self, entries: int) -> int:
        return int(self.sparsity * entries)
