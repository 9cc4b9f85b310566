"""Expressions: immutable trees of operations, inputs and numbers, which know their type and print as formulas.

A node never changes; an expression with another part is another expression (`replaced`), so that parts can be shared,
cached and recombined freely. What a node prints is what `parse` reads back to an equal node.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from modicum.errors import InvalidSetting, UnknownName
from modicum.symbolic.primitives import PRIMITIVES, Type

Path = tuple[int, ...]
"""Where a node is: which child of the root, which child of that, and so on."""

DEEPEST = 100
"""Levels of an expression that are read from outside; far more than a formula needs, far less than recursion can do."""

_SUM, _PRODUCT, _SIGN, _ATOM = range(4)
_STRENGTH = {"add": _SUM, "sub": _SUM, "mul": _PRODUCT, "div": _PRODUCT, "neg": _SIGN}


@dataclass(frozen=True)
class Node:
    """One node with all that hangs below it; made by `apply`, `symbol` and `number`.

    Attributes:
        op: name of the operation, or of the input; empty for a number.
        type: what its value is.
        children: the arguments.
        value: of a number.
    """

    op: str
    type: Type
    children: tuple[Node, ...] = ()
    value: float | None = None

    def __str__(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        if self.value is not None:
            written = repr(self.value).removesuffix(".0")
            return f"({written})" if written.startswith("-") else written
        if not self.children:
            return self.op
        infix = PRIMITIVES[self.op].infix
        if infix:
            left, right = self.children
            return f"{left._within(self._strength)} {infix} {right._within(self._strength + 1)}"
        if self.op == "neg" and self.children[0].value is None:
            return f"-{self.children[0]._within(_ATOM)}"
        return f"{self.op}({', '.join(child._text for child in self.children)})"

    @property
    def _strength(self) -> int:
        bare_sign = self.op == "neg" and self.children[0].value is not None
        return _STRENGTH.get(self.op, _ATOM) if self.children and not bare_sign else _ATOM

    def _within(self, strength: int) -> str:
        """The text, in brackets if it would be torn apart beside an operator of that strength."""
        return self._text if self._strength >= strength else f"({self._text})"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the formula as it stands; that of `canonical(node)` is the same for all its spellings."""
        return sha256(self._text.encode()).hexdigest()

    @cached_property
    def size(self) -> int:
        """Number of nodes: the complexity."""
        return 1 + sum(child.size for child in self.children)

    @cached_property
    def depth(self) -> int:
        """Operations on the longest way down; 0 for an input or a number."""
        return 1 + max(child.depth for child in self.children) if self.children else 0

    @cached_property
    def inputs(self) -> frozenset[str]:
        """Names of the inputs that occur."""
        if self.children:
            return frozenset().union(*(child.inputs for child in self.children))
        return frozenset() if self.value is not None else frozenset({self.op})

    def walk(self, at: Path = ()) -> Iterator[tuple[Path, Node]]:
        """Every node with its path, parents first."""
        yield at, self
        for index, child in enumerate(self.children):
            yield from child.walk((*at, index))

    def replaced(self, path: Path, node: Node) -> Node:
        """This expression with `node` at `path`; types are inferred anew.

        Raises:
            InvalidSetting: an operation on the way up does not take the new type.
        """
        if not path:
            return node
        children = list(self.children)
        children[path[0]] = children[path[0]].replaced(path[1:], node)
        return apply(self.op, *children)


def symbol(name: str, type: Type = Type.TENSOR) -> Node:
    """An input of that name."""
    return Node(name, type)


def number(value: float) -> Node:
    """A constant.

    Raises:
        InvalidSetting: NaN or infinity.
    """
    if not math.isfinite(value):
        raise InvalidSetting(f"{value} is no constant of an expression.", "Use a finite number.")
    return Node("", Type.SCALAR, (), float(value))


def apply(op: str, *children: Node) -> Node:
    """An operation on arguments.

    Raises:
        UnknownName: there is no such operation.
        InvalidSetting: the number or the types of the arguments do not fit.
    """
    if op not in PRIMITIVES:
        raise UnknownName.among("operation", op, PRIMITIVES)
    primitive = PRIMITIVES[op]
    type = primitive.gives([child.type for child in children]) if children else None
    if type is None:
        given = ", ".join(f"{child} ({child.type.name.lower()})" for child in children) or "nothing"
        raise InvalidSetting(
            f"{op} does not take {given}.",
            f"It takes {primitive.arity} of: {primitive.takes.name.lower()} or wider.",
        )
    return Node(op, type, children)
