"""From formulas to a child: swapped, mutated, grown anew, or shrunk.

    cross    a part of one parent goes into the place of a part of the other, which may be at most twice as large and
             one more than what it replaces (size-fair: trees do not grow by crossing alone)
    point    one node becomes another with as many arguments
    regrow   a part is replaced by a random tree
    hoist    a part is replaced by something that hangs below it

A child that is too large or whose types do not fit is drawn again (`modicum.search.evolution.child`).
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import TYPE_CHECKING

from modicum.errors import InvalidSetting
from modicum.search.genotype import Variation
from modicum.symbolic import Node, apply

if TYPE_CHECKING:
    from modicum.search.grammar import Trees

NEW_DEPTH = 2  # operations on the longest way down of a part that is grown anew


def cross(first: Node, second: Node, trees: Trees, generator: Random) -> Node:
    """A part of the second parent in the first."""
    path, part = generator.choice(list(first.walk()))
    fitting = [other for _, other in second.walk() if other.size <= 2 * part.size + 1]
    return first.replaced(path, generator.choice(fitting))


def point(first: Node, second: Node, trees: Trees, generator: Random) -> Node:
    """One node changed."""
    grammar = trees.grammar
    path, part = generator.choice(list(first.walk()))
    if not part.children:
        return first.replaced(path, grammar.terminal(generator))
    names = grammar.unary if len(part.children) == 1 else grammar.binary
    changed = apply(generator.choice(names), *part.children)
    if changed.type is not part.type:
        raise InvalidSetting(f"{changed} has another type than {part}.")
    return first.replaced(path, changed)


def regrow(first: Node, second: Node, trees: Trees, generator: Random) -> Node:
    """A part drawn anew."""
    path, _ = generator.choice(list(first.walk()))
    depth = generator.randint(0, NEW_DEPTH)
    return first.replaced(path, trees.grammar.tree(generator, depth, full=False))


def hoist(first: Node, second: Node, trees: Trees, generator: Random) -> Node:
    """A part replaced by a part of itself."""
    path, part = generator.choice(list(first.walk()))
    return first.replaced(path, generator.choice(list(part.walk()))[1])


VARIATIONS: Mapping[str, Variation[Node]] = {
    "cross": Variation(cross, 0.5, parents=2),
    "point": Variation(point, 0.25),
    "regrow": Variation(regrow, 0.15),
    "hoist": Variation(hoist, 0.1),
}
"""Crossing makes half of the children, mutations the other half."""
