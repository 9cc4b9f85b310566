"""Which expressions a search may make, and random ones among them.

A random tree begins with operations, ends in inputs, and in between either goes on with operations ("full") or stops
with probability 1/2 ("grow"). Half of them are of each kind, of depths that are drawn as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from modicum.search.genotype import Variation
from modicum.search.variation import VARIATIONS
from modicum.symbolic import Node, Rules, apply, behaviour, canonical, complaint
from modicum.symbolic.validity import Fixture


@dataclass(frozen=True)
class Grammar:
    """What expressions are made of.

    Attributes:
        terminals: inputs.
        unary: names of operations with one argument.
        binary: names of operations with two.
    """

    terminals: tuple[Node, ...]
    unary: tuple[str, ...]
    binary: tuple[str, ...]

    def terminal(self, generator: Random) -> Node:
        """Any input."""
        return generator.choice(self.terminals)

    def operation(self, generator: Random) -> tuple[str, int]:
        """Any operation, with the number of its arguments."""
        name = generator.choice(self.unary + self.binary)
        return name, 1 if name in self.unary else 2

    def tree(self, generator: Random, depth: int, full: bool, least: int = 0) -> Node:
        """A random tree.

        Args:
            generator: of all chance.
            depth: operations on the longest way down, at most.
            full: whether every way down is that long.
            least: operations on the shortest way down.
        """
        stop = depth == 0 or (not full and least <= 0 and generator.random() < 0.5)
        if stop:
            return self.terminal(generator)
        name, arity = self.operation(generator)
        return apply(name, *(self.tree(generator, depth - 1, full, least - 1) for _ in range(arity)))


@dataclass(frozen=True)
class Trees:
    """The genotype of trees: which there are, and which do the same.

    Attributes:
        grammar: what they are made of.
        rules: what they must be; sizes and depths are limited here.
        fixtures: small inputs; on all of them an expression must be valid, on the first its ranking is its behaviour.
        rows: shape of the first fixture's value, if only entries of one row compete.
        shallowest: operations on every way down of a tree that is drawn at random.
        deepest: the most of them; what is bred may grow up to the depth of the rules.
    """

    grammar: Grammar
    rules: Rules
    fixtures: Sequence[Fixture]
    rows: tuple[int, int] | None = None
    shallowest: int = 2
    deepest: int = 4

    @property
    def variations(self) -> Mapping[str, Variation[Node]]:
        """How trees are bred."""
        return VARIATIONS

    def random(self, generator: Random) -> tuple[Node, str]:
        """A random tree and how it was grown."""
        kind = generator.choice(("grow", "full"))
        depth = generator.randint(self.shallowest, self.deepest)
        tree = self.grammar.tree(generator, depth, kind == "full", self.shallowest)
        return self.normal(tree), kind

    def normal(self, node: Node) -> Node:
        """The canonical form."""
        return canonical(node)

    def fits(self, node: Node) -> bool:
        """Whether an expression is within size and depth; asked before anything is computed."""
        return node.size <= self.rules.largest and node.depth <= self.rules.deepest

    def identity(self, node: Node) -> str | None:
        """What an expression has in common with all that rank alike; None if it is not valid."""
        if complaint(node, self.rules, self.fixtures) is not None:
            return None
        return behaviour(node, self.fixtures[0], self.rows)
