"""From parents to a child: swapped, mutated, grown anew, or shrunk.

    cross    a part of one parent goes into the place of a part of the other, which may be at most twice as large and
             one more than what it replaces (size-fair: trees do not grow by crossing alone)
    point    one node becomes another with as many arguments
    regrow   a part is replaced by a random tree
    hoist    a part is replaced by something that hangs below it

A child that is too large or whose types do not fit is drawn again; after `TRIES` draws the first parent is returned,
which is known to be a duplicate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from modicum.errors import InvalidSetting
from modicum.search.grammar import Trees
from modicum.symbolic import Node, apply, canonical

TRIES = 10
NEW_DEPTH = 2  # operations on the longest way down of a part that is grown anew


@dataclass(frozen=True)
class Variation:
    """One way to make a child.

    Attributes:
        make: from two parents to a child; may raise InvalidSetting where types do not fit.
        share: how often it is chosen, relative to the others.
        parents: how many it reads.
    """

    make: Callable[[Node, Node, Trees, Random], Node]
    share: float
    parents: int = 1


def child(first: Node, second: Node, way: Variation, trees: Trees, generator: Random) -> Node:
    """A child within the limits of size and depth, in canonical form."""
    for _ in range(TRIES):
        try:
            made = canonical(way.make(first, second, trees, generator))
        except InvalidSetting:
            continue
        if trees.fits(made):
            return made
    return first


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


VARIATIONS: Mapping[str, Variation] = {
    "cross": Variation(cross, 0.5, parents=2),
    "point": Variation(point, 0.25),
    "regrow": Variation(regrow, 0.15),
    "hoist": Variation(hoist, 0.1),
}
"""Crossing makes half of the children, mutations the other half."""
