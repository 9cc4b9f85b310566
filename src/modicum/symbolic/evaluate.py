"""The value of an expression: children before parents, each distinct part once, nothing in place.

Tensors are computed in float32 (float64 if an input is), scalars in float64. A result that holds NaN or infinity is
no result: None.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping, Sequence

import torch
from torch import Tensor

from modicum.symbolic.expression import Node
from modicum.symbolic.primitives import PRIMITIVES, Primitive, Type

Value = Tensor | tuple[Tensor, ...]
"""A tensor, a scalar (float64, no dimension), or one of either for every layer."""

Memo = MutableMapping[Node, Value]


def evaluate(
    node: Node, inputs: Mapping[str, Tensor | Sequence[Tensor] | float], memo: Memo | None = None
) -> Value | None:
    """The value of an expression, or None if it holds NaN or infinity.

    Args:
        node: the expression.
        inputs: by name, tensors that broadcast against each other, lists of them (one tensor per layer), or numbers.
        memo: values of parts for the same inputs, kept and used again; without it parts are dropped when they have
            been used.

    Raises:
        ValueError: lists of different lengths.
    """
    values: Memo = {} if memo is None else memo
    uses = Counter(child for part in _distinct(node) for child in part.children)
    for part in _distinct(node):
        if part not in values:
            values[part] = _value(part, inputs, values)
        if memo is None:
            for child in part.children:
                uses[child] -= 1
                if not uses[child]:
                    del values[child]
    result = values[node]
    return result if _finite(result) else None


def full_tensors(node: Node) -> int:
    """How many full-sized tensors are held at the fullest moment of an evaluation, inputs and operands included."""
    uses = Counter(child for part in _distinct(node) for child in part.children)
    held = most = 0
    for part in _distinct(node):
        own = part.type is not Type.SCALAR
        most = max(most, held + 2 * own)  # the result, and what an operation needs on the way to it
        held += own
        for child in part.children:
            uses[child] -= 1
            held -= not uses[child] and child.type is not Type.SCALAR
    return most


def _distinct(node: Node, seen: set[Node] | None = None) -> Iterator[Node]:
    """Every distinct part once, children before parents."""
    seen = set() if seen is None else seen
    if node in seen:
        return
    for child in node.children:
        yield from _distinct(child, seen)
    seen.add(node)
    yield node


def _value(
    node: Node, inputs: Mapping[str, Tensor | Sequence[Tensor] | float], values: Mapping[Node, Value]
) -> Value:
    if node.value is not None:
        return _as_scalar(node.value)
    if not node.children:
        given = inputs[node.op]
        if isinstance(given, Tensor | float | int):
            return _as_value(given)
        return tuple(_as_value(one) for one in given)
    return _applied(PRIMITIVES[node.op], [values[child] for child in node.children])


def _as_value(given: Tensor | float) -> Tensor:
    if not isinstance(given, Tensor):
        return _as_scalar(given)
    if given.dim() == 0:
        return given.double()
    return given if given.dtype == torch.float64 else given.float()


def _as_scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _applied(primitive: Primitive, arguments: Sequence[Value]) -> Value:
    if primitive.takes is Type.LAYERS:
        means = [one.mean(dtype=torch.float64) for one in arguments[0]]
        return primitive.compute(torch.stack(means))
    lengths = {len(argument) for argument in arguments if isinstance(argument, tuple)}
    if not lengths:
        return primitive.compute(*arguments)
    if len(lengths) > 1:
        raise ValueError(f"lists of {sorted(lengths)} layers do not belong together")
    (length,) = lengths
    lists = [argument if isinstance(argument, tuple) else (argument,) * length for argument in arguments]
    return tuple(primitive.compute(*some) for some in zip(*lists, strict=True))


def _finite(value: Value) -> bool:
    parts = value if isinstance(value, tuple) else (value,)
    return all(bool(torch.isfinite(part).all()) for part in parts)
