"""Genetic programming by ask and tell: candidates are asked for a generation at a time, and told what they were worth.

    evolution = Evolution(trees, size=20, generator=Random(seed))
    while ...:
        drafts = evolution.ask()
        evolution.tell([Individual(draft, Outcome(fitness(draft.node))) for draft in drafts])

No two candidates that rank alike are ever asked for: spelling is compared first (the canonical form), behaviour on a
small example next. What is told does not depend on the order or the place of the trials, and neither does what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random

from modicum.search.grammar import Trees
from modicum.search.individual import Draft, Individual
from modicum.search.selection import Elitism, Select, Survive, Tournament
from modicum.search.variation import VARIATIONS, Variation, child
from modicum.symbolic import Node

DRAWS = 100  # per candidate that is wanted, before a generation makes do with fewer

_Made = tuple[Node, str, tuple[int, ...]]  # a candidate, what made it, and the numbers of its parents


class Exhausted(Exception):
    """There is no new candidate to be found."""


class Evolution:
    """One population and all that was ever asked for.

    Args:
        trees: which candidates there are.
        size: of the population, and of the generations that it breeds.
        generator: of all chance.
        starts: candidates of generation 0, before random ones.
        select: who breeds.
        survive: who lives on.
        variations: how children are made, by name.
    """

    def __init__(
        self,
        trees: Trees,
        size: int,
        generator: Random,
        starts: Sequence[Node] = (),
        select: Select = Tournament(),
        survive: Survive = Elitism(),
        variations: Mapping[str, Variation] = VARIATIONS,
    ) -> None:
        self.trees, self.size, self.generator, self.starts = trees, size, generator, starts
        self.select, self.survive, self.variations = select, survive, variations
        self.population: list[Individual] = []
        self.generation = 0
        self.asked = 0
        self.draws = 0
        self._texts: set[str] = set()
        self._behaviours: set[str] = set()

    @property
    def best(self) -> Individual:
        """The best individual of all."""
        return self.population[0]

    def ask(self) -> list[Draft]:
        """The next generation, at most `size` candidates that are valid and new.

        Raises:
            Exhausted: there is none.
        """
        drafts = [] if self.population else self._started()
        while len(drafts) < self.size:
            found = self._drawn(self._bred if self.population else self._random)
            if found is None:
                break
            drafts.append(found)
        if not drafts:
            raise Exhausted
        return drafts

    def tell(self, found: Sequence[Individual]) -> None:
        """What became of the last generation."""
        self.population = self.survive(self.population, found, self.size)
        self.generation += 1

    def _started(self) -> list[Draft]:
        made = (self._new((node, "start", ()), 1) for node in self.starts)
        return [draft for draft in made if draft is not None]

    def _drawn(self, make: Callable[[], _Made]) -> Draft | None:
        for draws in range(1, DRAWS + 1):
            self.draws += 1
            # What breeding does not find any more, chance may.
            draft = self._new(make() if draws <= DRAWS // 2 else self._random(), draws)
            if draft is not None:
                return draft
        return None

    def _random(self) -> _Made:
        node, kind = self.trees.random(self.generator)
        return node, kind, ()

    def _bred(self) -> _Made:
        shares = [way.share for way in self.variations.values()]
        (name,) = self.generator.choices(list(self.variations), shares)
        way = self.variations[name]
        chosen = [self.select(self.population, self.generator) for _ in range(way.parents)]
        first, last = chosen[0].draft, chosen[-1].draft
        node = child(first.node, last.node, way, self.trees, self.generator)
        return node, name, tuple(each.draft.number for each in chosen)

    def _new(self, made: _Made, draws: int) -> Draft | None:
        """A draft of a candidate that is valid and does what none before it did; cheap checks first."""
        node, operator, parents = made
        if node.digest in self._texts or not (operator == "start" or self.trees.fits(node)):
            return None
        self._texts.add(node.digest)
        identity = self.trees.identity(node)
        if identity is None or identity in self._behaviours:
            return None
        self._behaviours.add(identity)
        draft = Draft(self.asked, self.generation, node, operator, parents, identity, draws)
        self.asked += 1
        return draft
