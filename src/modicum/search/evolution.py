"""Evolution by ask and tell: candidates are asked for a generation at a time, and told what they were worth.

    evolution = Evolution(space, size=20, generator=Random(seed))
    while ...:
        drafts = evolution.ask()
        evolution.tell([Individual(draft, Outcome(fitness(draft.genotype))) for draft in drafts])

No two candidates that do the same are ever asked for: spelling is compared first (the normal form), what the space
knows of them next. What is told does not depend on the order or the place of the trials, and neither does what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Generic

from modicum.errors import InvalidSetting
from modicum.search.genotype import G, Space, Variation
from modicum.search.individual import Draft, Individual
from modicum.search.selection import Elitism, Select, Survive, Tournament

DRAWS = 100  # per candidate that is wanted, before a generation makes do with fewer
TRIES = 10  # of one variation, until its child fits

_Made = tuple[G, str, tuple[int, ...]]  # a candidate, what made it, and the numbers of its parents


class Exhausted(Exception):
    """There is no new candidate to be found."""


class Evolution(Generic[G]):
    """One population and all that was ever asked for.

    Args:
        space: which candidates there are.
        size: of the population, and of the generations that it breeds.
        generator: of all chance.
        starts: candidates of generation 0, before random ones.
        select: who breeds.
        survive: who lives on.
        variations: how children are made, by name; those of the space by default.
    """

    def __init__(
        self,
        space: Space[G],
        size: int,
        generator: Random,
        starts: Sequence[G] = (),
        select: Select = Tournament(),
        survive: Survive = Elitism(),
        variations: Mapping[str, Variation[G]] | None = None,
    ) -> None:
        self.space, self.size, self.generator, self.starts = space, size, generator, starts
        self.select, self.survive = select, survive
        self.variations = space.variations if variations is None else variations
        self.population: list[Individual[G]] = []
        self.generation = 0
        self.asked = 0
        self.draws = 0
        self._texts: set[str] = set()
        self._behaviours: set[str] = set()

    @property
    def best(self) -> Individual[G]:
        """The best individual of all."""
        return self.population[0]

    def ask(self) -> list[Draft[G]]:
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

    def tell(self, found: Sequence[Individual[G]]) -> None:
        """What became of the last generation."""
        self.population = self.survive(self.population, found, self.size)
        self.generation += 1

    def _started(self) -> list[Draft[G]]:
        made = (self._new((genotype, "start", ()), 1) for genotype in self.starts)
        return [draft for draft in made if draft is not None]

    def _drawn(self, make: Callable[[], _Made[G]]) -> Draft[G] | None:
        for draws in range(1, DRAWS + 1):
            self.draws += 1
            # What breeding does not find any more, chance may.
            draft = self._new(make() if draws <= DRAWS // 2 else self._random(), draws)
            if draft is not None:
                return draft
        return None

    def _random(self) -> _Made[G]:
        genotype, kind = self.space.random(self.generator)
        return genotype, kind, ()

    def _bred(self) -> _Made[G]:
        shares = [way.share for way in self.variations.values()]
        (name,) = self.generator.choices(list(self.variations), shares)
        way = self.variations[name]
        chosen = [self.select(self.population, self.generator) for _ in range(way.parents)]
        first, last = chosen[0].draft, chosen[-1].draft
        made = child(first.genotype, last.genotype, way, self.space, self.generator)
        return made, name, tuple(each.draft.number for each in chosen)

    def _new(self, made: _Made[G], draws: int) -> Draft[G] | None:
        """A draft of a candidate that is valid and does what none before it did; cheap checks first."""
        genotype, operator, parents = made
        if genotype.digest in self._texts or not (operator == "start" or self.space.fits(genotype)):
            return None
        self._texts.add(genotype.digest)
        identity = self.space.identity(genotype)
        if identity is None or identity in self._behaviours:
            return None
        self._behaviours.add(identity)
        draft = Draft(self.asked, self.generation, genotype, operator, parents, identity, draws)
        self.asked += 1
        return draft


def child(first: G, second: G, way: Variation[G], space: Space[G], generator: Random) -> G:
    """A child within the limits of the space, in normal form; the first parent, a known duplicate, if none comes."""
    for _ in range(TRIES):
        try:
            made = space.normal(way.make(first, second, space, generator))
        except InvalidSetting:
            continue
        if space.fits(made):
            return made
    return first
