"""One form for all spellings of a formula, so that a search evaluates none of them twice.

`canonical` keeps the value (up to rounding) for all inputs: arguments that commute are sorted, operations that do
nothing are dropped, signs go where they cost nothing (a - -b is a + b, a + -b is a - b), constants are folded. So x / x
stays as it is: its guard makes it 0 where x is 0, and only a number of 1e-9 or more divides to 1.

`without_opposites` is the opposing-operation simplification of Pruner-Zero: pairs that undo each other on positive
numbers vanish, which keeps the order of the scores as long as what is inside is positive.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from modicum.symbolic.expression import Node, apply, number
from modicum.symbolic.primitives import LOG_EPS, PRIMITIVES, Type


def canonical(node: Node) -> Node:
    """The simplest spelling of the same value."""
    return _rewritten(node, _simpler)


def without_opposites(node: Node) -> Node:
    """The canonical form without adjacent operations that undo each other on positive numbers."""
    return canonical(_rewritten(node, _cancelled))


def _rewritten(node: Node, rule: Callable[[Node], Node]) -> Node:
    """The expression after the rule was applied everywhere, innermost first, until it changes nothing."""
    if not node.children:
        return node
    node = apply(node.op, *(_rewritten(child, rule) for child in node.children))
    changed = rule(node)
    return node if changed == node else _rewritten(changed, rule)


def _cancelled(node: Node) -> Node:
    inner = node.children[0]
    if node.op == "skip":
        return inner
    if len(node.children) == 1 and inner.children and PRIMITIVES[node.op].inverse_of == inner.op:
        return inner.children[0]
    if node.op == inner.op and PRIMITIVES[node.op].idempotent:
        return inner
    return node


def _simpler(node: Node) -> Node:
    if all(child.value is not None for child in node.children):
        return _folded(node)
    if len(node.children) == 1:
        return _simpler_unary(node)
    if PRIMITIVES[node.op].commutative:
        ordered = sorted(node.children, key=lambda child: (child.value is not None, str(child)))
        node = apply(node.op, *ordered)
    return _simpler_binary(node)


def _folded(node: Node) -> Node:
    values = [torch.tensor(child.value, dtype=torch.float64) for child in node.children]
    result = PRIMITIVES[node.op].compute(*values)
    return number(float(result)) if bool(torch.isfinite(result)) else node


def _simpler_unary(node: Node) -> Node:
    (inner,) = node.children
    outer = PRIMITIVES[node.op]
    if node.op == "skip" or (node.op == inner.op and outer.idempotent):
        return inner
    if outer.even and inner.op in ("neg", "abs") and inner.children:
        return apply(node.op, *inner.children)
    if node.op in ("abs", "relu") and _never_negative(inner):
        return inner
    match node.op, inner.op:
        case "neg", "neg":
            return inner.children[0]
        case ("sqrt", "sqr") | ("sqr", "sqrt"):
            return apply("abs", *inner.children)
        case "neg", "sub":
            return apply("sub", *reversed(inner.children))
        case "exp", "log":
            return apply("add", apply("abs", *inner.children), number(LOG_EPS))
    return node


def _simpler_binary(node: Node) -> Node:
    node = _with_sign_outside(node)
    left, right = node.children
    neutral = {"add": 0.0, "sub": 0.0, "mul": 1.0, "div": 1.0}.get(node.op)
    if neutral is not None and right.value == neutral:
        return left
    if left == right and node.op == "mul":
        return apply("sqr", left)
    if left == right and node.op == "sub" and node.type is Type.SCALAR:
        return number(0.0)
    return node


def _with_sign_outside(node: Node) -> Node:
    """A sum or difference whose right side has no sign of its own; the left one's goes as well, if it is a sum."""
    left, right = node.children
    other = {"add": "sub", "sub": "add"}.get(node.op)
    if other is None:
        return node
    positive = _opposite(right)
    if positive is not None:
        return apply(other, left, positive)
    positive = _opposite(left) if node.op == "add" and left.value is None else None
    return node if positive is None else apply("sub", right, positive)


def _opposite(node: Node) -> Node | None:
    """What -x or a negative number is the opposite of."""
    if node.value is not None:
        return number(-node.value) if node.value < 0 else None
    return node.children[0] if node.op == "neg" else None


def _never_negative(node: Node) -> bool:
    """Whether the operation, or all that is multiplied, added or divided, cannot be below zero."""
    if node.value is not None:
        return node.value >= 0
    if not node.children:
        return False
    if node.op in ("mul", "add", "div"):
        return all(_never_negative(child) for child in node.children)
    return PRIMITIVES[node.op].positive
