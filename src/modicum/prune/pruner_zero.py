"""Pruner-Zero: a score that a search found, and any other score that can be written down."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field
from torch import Tensor

from modicum.calibrate.statistics import Statistics
from modicum.errors import InvalidSetting
from modicum.method import Paper, Target
from modicum.prune import metrics
from modicum.prune.scored import Scored
from modicum.symbolic import Node


class PrunerZero(Scored):
    """Prune by a formula over weights, gradients and input norms; the default was found by genetic programming.

    Score: S = W^2 (G - min G), G the size of the gradient at each weight over the calibration windows, from the dense
    model. The published tree is |W W| mms(G) with mms scaling a matrix to [0, 1], which ranks alike; this form has no
    quotient that a constant G could break. Within each output row the int(sparsity * in_features) lowest scores go.

    `metric` takes other formulas: names (magnitude, wanda, ria, gblm, pruner_zero), or text over W (with its sign), G
    and X (norms of the input channels), such as "abs(W) * X" or "W * W * mms(G)". A tree published as JSON is read as
    well; there W is |W| and X the square of the norm, and `div` divides by a Frobenius norm. Only statistics that
    the formula names are collected; G takes a backward pass per window.

    Departs from the publication: gradients come from the same calibration text as everything else, and are kept in
    float32. Where a formula gives all weights of a matrix one value (an expert that no token reached has no gradient),
    their magnitude decides.
    """

    paper: ClassVar[Paper] = Paper(
        "Pruner-Zero: Evolving Symbolic Pruning Metric from Scratch for Large Language Models",
        "ICML 2024",
        "2406.02924",
    )

    metric: Annotated[str, BeforeValidator(metrics.normalised)] = Field(
        "pruner_zero",
        description="formula over W, G, X; magnitude, wanda, ria, gblm, pruner_zero; a tree as JSON",
    )

    @property
    def _expression(self) -> Node:
        return metrics.expression(self.metric)

    def statistics(self) -> frozenset[str]:
        return metrics.statistics_of(self._expression) | super().statistics()

    def workspace(self, weight: Tensor) -> int:
        return metrics.score_bytes(self._expression, weight) + super().workspace(weight)

    def scores(self, target: Target, statistics: Statistics) -> Tensor:
        """The formula's value at every weight, [out, in].

        Raises:
            InvalidSetting: it is NaN or infinite somewhere.
        """
        node = self._expression
        inputs = metrics.inputs_of(node, target.weight, statistics)
        scores = metrics.scores_of(node, inputs, target.weight)
        if scores is None:
            raise InvalidSetting(
                f"At {target.name} the formula {node} gives NaN or infinity.",
                "Scale its parts, or leave it out.",
            )
        return scores if target.zeros is None else scores.clone()  # a formula may be one of its letters
