"""ACE: weights that turn the output, times what distinguishes one token from another."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from modicum.calibrate.statistics import Statistics
from modicum.method import Paper, Target
from modicum.prune.scored import Scored

SMALLEST = 1e-30


class ACE(Scored):
    """Prune by how far a weight turns the layer's output and how much its input varies; no weight is updated.

    Scores, for outputs a_t = W x_t of the tokens t, compared within each output row:

    cosp: |W_ij| sqrt(sum_t x_tj^2 (1 - a_ti^2 / ||a_t||^2) / ||a_t||^2), half the square of which is the leading term
    of sum_t 1 - cos(a_t, a_t without W_ij). With `expansion="first"`, |W_ij| ||X_j|| C_ij, C_ij = sum_t
    |a_ti| |x_tj| / ||a_t||^2, the first-order term that is published, which a cosine does not have. A layer of one
    output cannot turn: it is pruned by |W_ij| ||X_j||.

    varp: |W_ij| std_t(x_tj). A channel that is large but constant tells no token from another.

    both: cosp / mean(cosp) + balance * varp / mean(varp), means over the layer.

    Departs from the paper: the default is the exact expansion. At 50 % on nano-lm it gives a perplexity of 8.76, as
    Wanda does, the first-order one 9.33 (`benchmarks/pruning.py`). Public summaries do not say whether varp takes the
    standard deviation or the variance, nor how the two are added; both are choices of ours. Padding is left out.
    """

    paper: ClassVar[Paper] = Paper(
        "ACE: Exploring Activation Cosine Similarity and Variance for Accurate and Calibration-Efficient LLM Pruning",
        "2025",
        "2505.21987",
    )

    score: Literal["both", "cosp", "varp"] = Field("both", description="which of the two scores")
    expansion: Literal["exact", "first"] = Field("exact", description="of the cosine, in cosp")
    balance: float = Field(1.0, ge=0, description="weight of varp beside cosp")

    def statistics(self) -> frozenset[str]:
        direction = "turning" if self.expansion == "exact" else "alignment"
        cosp = {"column_norm", direction} if self.score != "varp" else set()
        return frozenset(cosp | ({"column_var"} if self.score != "cosp" else set()))

    def workspace(self, weight: Tensor) -> int:
        return 4 * 4 * weight.numel() + super().workspace(weight)  # two scores and their operands

    def scores(self, target: Target, statistics: Statistics) -> Tensor:
        magnitude = target.weight.float().abs()  # [out, in]
        if self.score == "cosp":
            return self._cosp(magnitude, statistics)
        varp = magnitude * statistics.column_var.sqrt()
        if self.score == "varp":
            return varp
        cosp = self._cosp(magnitude, statistics)
        return cosp / cosp.mean().clamp_min(SMALLEST) + self.balance * varp / varp.mean().clamp_min(SMALLEST)

    def _cosp(self, magnitude: Tensor, statistics: Statistics) -> Tensor:
        if self.expansion == "first":
            return magnitude * statistics.column_norm * statistics.alignment
        if len(magnitude) == 1:
            return magnitude * statistics.column_norm
        return magnitude * statistics.turning
