"""Expressions over statistics: scores that are found by search, typed by a user, or published as a formula.

    expression = parse("abs(W) * X", {"W": Type.TENSOR, "X": Type.TENSOR})
    evaluate(expression, {"W": weight, "X": norms})     # a tensor, or None where NaN or infinity came out
    canonical(expression)                               # one form for all spellings of the same formula

Nothing here knows what the inputs mean.
"""

from modicum.symbolic.behaviour import behaviour
from modicum.symbolic.canonical import canonical, without_opposites
from modicum.symbolic.evaluate import Value, evaluate, full_tensors
from modicum.symbolic.expression import Node, apply, number, symbol
from modicum.symbolic.parse import parse
from modicum.symbolic.primitives import PRIMITIVES, Primitive, Type
from modicum.symbolic.trees import from_json, from_nested, to_json
from modicum.symbolic.validity import Rules, complaint

__all__ = [
    "PRIMITIVES",
    "Node",
    "Primitive",
    "Rules",
    "Type",
    "Value",
    "apply",
    "behaviour",
    "canonical",
    "complaint",
    "evaluate",
    "from_json",
    "from_nested",
    "full_tensors",
    "number",
    "parse",
    "symbol",
    "to_json",
    "without_opposites",
]
