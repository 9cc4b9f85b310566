"""Which expressions are worth a full evaluation; what costs least is asked first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modicum.symbolic.evaluate import Value, evaluate
from modicum.symbolic.expression import Node
from modicum.symbolic.primitives import Type

Fixture = Mapping[str, Tensor | Sequence[Tensor] | float]
LEAST_DEVIATION = 1e-9


@dataclass(frozen=True)
class Rules:
    """What an expression must be.

    Attributes:
        type: of its value.
        largest: nodes it may have.
        deepest: operations on its longest way down.
        required: inputs that must occur.
        no_unary: inputs that no operation of one argument may be applied to directly.
        shape: of its value, once it is broadcast; None if any will do.
    """

    type: Type = Type.TENSOR
    largest: int = 64
    deepest: int = 32
    required: frozenset[str] = frozenset()
    no_unary: frozenset[str] = frozenset()
    shape: tuple[int, ...] | None = None


def complaint(node: Node, rules: Rules, fixtures: Sequence[Fixture] = ()) -> str | None:
    """What is wrong with an expression, as part of a sentence that begins with it; None if nothing is.

    Args:
        node: the expression.
        rules: what it must be.
        fixtures: small inputs on which it is tried.
    """
    if node.type is not rules.type:
        return f"is a {node.type.name.lower()}, not a {rules.type.name.lower()}"
    if node.size > rules.largest or node.depth > rules.deepest:
        return f"has {node.size} parts in {node.depth} levels, of at most {rules.largest} and {rules.deepest}"
    if missing := rules.required - node.inputs:
        return f"does not use {', '.join(sorted(missing))}"
    for _, part in node.walk():
        if len(part.children) == 1 and part.children[0].op in rules.no_unary:
            return f"applies {part.op} to {part.children[0].op}"
    return _behaves_badly(node, rules, fixtures)


def _behaves_badly(node: Node, rules: Rules, fixtures: Sequence[Fixture]) -> str | None:
    for fixture in fixtures:
        value = evaluate(node, fixture)
        if value is None:
            return "gives NaN or infinity"
        if rules.shape is not None and not _spreads(value, rules.shape):
            return f"does not give one value per entry of {list(rules.shape)}"
        if _deviation(value) <= LEAST_DEVIATION:
            return "gives the same value everywhere"
    return None


def _spreads(value: Value, shape: tuple[int, ...]) -> bool:
    if isinstance(value, tuple):
        return False
    try:
        return torch.broadcast_shapes(value.shape, shape) == torch.Size(shape)
    except RuntimeError:
        return False


def _deviation(value: Value) -> float:
    """Standard deviation over all entries, relative to the largest; a scalar cannot be judged by one fixture."""
    parts = value if isinstance(value, tuple) else (value,)
    flat = torch.cat([part.reshape(-1).double() for part in parts])
    if len(flat) == 1:
        return float("inf")
    return float(flat.std() / flat.abs().max().clamp_min(1e-300))
