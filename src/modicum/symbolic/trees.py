"""Expressions as plain JSON values, and the nested trees in which searches publish what they found.

{"op": "mul", "args": [{"input": "W"}, {"number": 2.0}]}                       our own
{"data": "mul", "left": {"data": "W"}, "right": {"data": "G"}}                 published
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modicum.errors import InvalidSetting, UnknownName
from modicum.symbolic.expression import DEEPEST, Node, apply, number, symbol
from modicum.symbolic.primitives import Type

_PUBLISHED = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "div": "normdiv",
    "sqr": "sqr",
    "pow": "sqr",
    "neg": "neg",
    "abs": "abs",
    "log": "log",
    "exp": "exp",
    "sqrt": "sqrt",
    "tanh": "tanh",
    "skp": "skip",
    "mms": "mms",
    "zsn": "zsn",
}


def to_json(node: Node) -> dict[str, Any]:
    """The expression as plain values."""
    if node.value is not None:
        return {"number": node.value}
    if not node.children:
        return {"input": node.op}
    return {"op": node.op, "args": [to_json(child) for child in node.children]}


def from_json(data: Any, inputs: Mapping[str, Type]) -> Node:
    """The inverse of `to_json`.

    Args:
        data: plain values.
        inputs: type by name of what may occur.

    Raises:
        InvalidSetting: not what `to_json` writes.
        UnknownName: an operation or an input that there is not.
    """
    return _own(data, inputs, 0)


def _own(data: Any, inputs: Mapping[str, Type], depth: int) -> Node:
    _refuse_deep(depth)
    match data:
        case {"number": int() | float() as value, **rest} if not rest and not isinstance(value, bool):
            return number(value)
        case {"input": str() as name, **rest} if not rest:
            if name not in inputs:
                raise UnknownName.among("input", name, inputs)
            return symbol(name, inputs[name])
        case {"op": str() as op, "args": list() as arguments, **rest} if not rest:
            return apply(op, *(_own(argument, inputs, depth + 1) for argument in arguments))
    raise _no_tree(data)


def from_nested(data: Any, leaves: Mapping[str, Node]) -> Node:
    """A published tree of Pruner-Zero.

    Its `div` divides by the Frobenius norm, `pow` is the square, `skp` does nothing.

    Args:
        data: nested {"data", "left", "right"}.
        leaves: what its terminals mean.

    Raises:
        InvalidSetting: not such a tree.
        UnknownName: an operation or a terminal that there is not.
    """
    return _nested(data, leaves, 0)


def _nested(data: Any, leaves: Mapping[str, Node], depth: int) -> Node:
    _refuse_deep(depth)
    if not isinstance(data, dict) or not isinstance(data.get("data"), str):
        raise _no_tree(data)
    label = data["data"]
    children = [data[side] for side in ("left", "right") if data.get(side) is not None]
    if not children and label in leaves:
        return leaves[label]
    if label not in _PUBLISHED:
        raise UnknownName.among("label of a tree", label, [*_PUBLISHED, *leaves])
    return apply(_PUBLISHED[label], *(_nested(child, leaves, depth + 1) for child in children))


def _refuse_deep(depth: int) -> None:
    if depth > DEEPEST:
        raise InvalidSetting("The tree of an expression is too deep.", f"Up to {DEEPEST} levels are read.")


def _no_tree(data: Any) -> InvalidSetting:
    return InvalidSetting(
        f"{str(data)[:100]!r} is no tree of an expression.",
        'A tree looks like {"data": "mul", "left": {"data": "W"}, "right": {"data": "G"}}.',
    )
