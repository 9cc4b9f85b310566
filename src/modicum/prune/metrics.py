"""Scores of weights as formulas: how they are written, what their letters mean, and those that have a name.

    W    the weight, as the step before left it, signs included
    X    sqrt(sum_t x_j^2 / windows), the norm of input channel j; norm(X) is the same
    G    sqrt(sum over windows (100 dL/dW_ij)^2), from the dense model

Trees that Pruner-Zero published mean other things by the same letters: W is |W| and X is the square of the norm.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modicum.calibrate.statistics import Statistics
from modicum.errors import ModicumError
from modicum.symbolic import (
    Node,
    Rules,
    Type,
    apply,
    complaint,
    evaluate,
    from_nested,
    full_tensors,
    parse,
    symbol,
)

METRICS = {
    "magnitude": "abs(W)",
    "wanda": "abs(W) * X",
    "ria": "(abs(W) / colsum(abs(W)) + abs(W) / rowsum(abs(W))) * sqrt(X)",
    "gblm": "abs(W) * X + abs(W) * G",
    "pruner_zero": "W * W * (G - min(G))",
}
"""Published scores by name."""

INPUTS = {"W": Type.TENSOR, "X": Type.TENSOR, "G": Type.TENSOR}
SPELLINGS = {"norm(X)": "X"}
STATISTICS = {"X": "column_norm", "G": "gradient"}
RULES = Rules(shape=(6, 8))
_READ: dict[str, Callable[[Statistics], Tensor]] = {
    "X": lambda statistics: statistics.column_norm / max(statistics.sequences, 1) ** 0.5,
    "G": lambda statistics: statistics.gradient,
}


def normalised(metric: Any) -> str:
    """A metric as it is kept: a name, or a formula that was tried out.

    Args:
        metric: a name of `METRICS`, a formula, or a published tree (nested, as JSON, or the name of a .json file).

    Raises:
        ValueError: it is nothing of that, or no score of single weights.
    """
    text = str(metric).strip()
    if text in METRICS:
        return text
    try:
        tree = metric if isinstance(metric, dict) else _tree(text)
        node = parse(text, INPUTS, SPELLINGS) if tree is None else from_nested(tree, _published())
    except ModicumError as error:
        raise ValueError(f"{error.what} {error.hint} Or one of {', '.join(METRICS)}.") from error
    wrong = complaint(node, RULES, [_fixture()])
    if wrong:
        raise ValueError(f"{node} {wrong}")
    return str(node)


def expression(metric: str) -> Node:
    """The expression of a metric that `normalised` gave."""
    return parse(METRICS.get(metric, metric), INPUTS, SPELLINGS)


def statistics_of(node: Node) -> frozenset[str]:
    """What an expression reads of the calibration."""
    return frozenset(STATISTICS[name] for name in node.inputs if name in STATISTICS)


def inputs_of(node: Node, weight: Tensor, statistics: Statistics) -> dict[str, Tensor]:
    """Values of the letters that occur: W and G [out, in], X [in]."""
    read = {name: _READ[name](statistics) for name in node.inputs if name in _READ}
    return {"W": weight, **read}


def scores_of(node: Node, inputs: Mapping[str, Tensor], weight: Tensor) -> Tensor | None:
    """The score of every weight, [out, in]: its magnitude where the formula gives all of them one value.

    Args:
        node: the formula.
        inputs: values of its letters.
        weight: [out, in].

    Returns:
        None if the formula gives NaN or infinity.
    """
    scores = evaluate(node, inputs)
    if not isinstance(scores, Tensor):
        return None
    low, high = torch.aminmax(scores)
    return weight.float().abs() if low == high else scores.expand(weight.shape)


def score_bytes(node: Node, weight: Tensor) -> int:
    """Bytes of an evaluation at its peak for `weight` [out, in], beside the statistics."""
    return 4 * weight.numel() * full_tensors(node)


def _tree(text: str) -> Any:
    """The JSON of a published tree, or None if the text is none.

    Raises:
        ValueError: it looks like one and cannot be read.
    """
    try:
        if text.endswith(".json"):
            return json.loads(Path(text).read_text())
        return json.loads(text) if text.startswith("{") else None
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{text[:100]!r} is no JSON tree: {reason}") from error


def _published() -> dict[str, Node]:
    weight, norm, gradient = (symbol(name) for name in "WXG")
    return {"W": apply("abs", weight), "X": apply("sqr", norm), "G": gradient}


def _fixture() -> dict[str, Tensor]:
    """A small layer: signs of both kinds, one weight and one gradient of zero."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 8, generator=generator)
    gradient, norm = torch.rand(6, 8, generator=generator), torch.rand(8, generator=generator) + 0.1
    weight[0, 0] = gradient[1, 1] = 0
    return {"W": weight, "G": gradient, "X": norm}
