"""From text to expression: `abs(W) * X + 0.5 * mms(G)`.

Python's grammar reads the text; of its syntax tree only names, numbers, calls of operations and + - * / are accepted,
and nothing is ever executed.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping

from modicum.errors import InvalidSetting, UnknownName
from modicum.symbolic.expression import DEEPEST, Node, apply, number, symbol
from modicum.symbolic.primitives import PRIMITIVES, Type

LONGEST = 2000  # characters
_INFIX: dict[type[ast.operator], str] = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div"}
_POWERS: dict[object, str] = {2: "sqr", 0.5: "sqrt"}


def parse(text: str, inputs: Mapping[str, Type], spellings: Mapping[str, str] | None = None) -> Node:
    """The expression that a text says.

    Args:
        text: a formula.
        inputs: type by name of what may occur.
        spellings: calls that stand for an input, such as {"norm(X)": "X"}.

    Raises:
        InvalidSetting: no formula, or one that uses more than names, numbers, operations and + - * / **.
        UnknownName: an operation or an input that there is not.
    """
    if len(text) > LONGEST:
        raise InvalidSetting(
            f"A formula of {len(text)} characters is too long.", f"Up to {LONGEST} are read."
        )
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return _Reader(inputs, spellings or {}).read(tree.body)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise InvalidSetting(
            f"{text[:100]!r} is no formula: {getattr(error, 'msg', None) or type(error).__name__}.",
            "For example abs(W) * X.",
        ) from error


class _Reader:
    def __init__(self, inputs: Mapping[str, Type], spellings: Mapping[str, str]) -> None:
        self.inputs, self.spellings = inputs, spellings
        self.level = 0

    def read(self, tree: ast.expr) -> Node:
        """One part of the syntax tree and all below it."""
        self.level += 1
        if self.level > DEEPEST:
            raise InvalidSetting("The formula is too deep.", f"Up to {DEEPEST} levels are read.")
        node = self._read(tree)
        self.level -= 1
        return node

    def _read(self, tree: ast.expr) -> Node:
        match tree:
            case ast.Name(id=name):
                if name not in self.inputs:
                    raise UnknownName.among("input", name, self.inputs)
                return symbol(name, self.inputs[name])
            case ast.Constant(value=bool()):
                pass
            case ast.Constant(value=int() | float() as value):
                return _number(value)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.read(operand)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                inner = self.read(operand)
                return apply("neg", inner) if inner.value is None else number(-inner.value)
            case ast.BinOp(op=ast.Pow(), left=left, right=ast.Constant(value=power)) if power in _POWERS:
                return apply(_POWERS[power], self.read(left))
            case ast.BinOp(op=op, left=left, right=right) if type(op) in _INFIX:
                return apply(_INFIX[type(op)], self.read(left), self.read(right))
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return self._call(name, arguments, ast.unparse(tree))
        raise InvalidSetting(
            f"{ast.unparse(tree)[:100]!r} cannot stand in a formula.",
            f"Use numbers, {', '.join(self.inputs)}, + - * /, **2, **0.5 and operations: {', '.join(PRIMITIVES)}.",
        )

    def _call(self, name: str, arguments: list[ast.expr], text: str) -> Node:
        if text in self.spellings:
            return self.read(ast.Name(self.spellings[text]))
        return apply(name, *(self.read(argument) for argument in arguments))


def _number(value: float) -> Node:
    try:
        return number(float(value))
    except OverflowError as error:
        raise InvalidSetting(
            "A number of a formula is too large.", "Numbers up to 1e308 are read."
        ) from error
