"""The loop of a search: ask, look into the log, try out what is not there, tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from modicum.search.evolution import Evolution, Exhausted
from modicum.search.individual import Draft, Individual, Outcome
from modicum.search.log import Log

Trial = Callable[[Sequence[str], float], Iterator[Outcome]]
"""Outcomes of genomes, in their order; a candidate that is surely worse than the limit may be given up early."""

MARGIN = 1.25  # times the worst of the population: what is estimated to be beyond is given up


def evolve(
    evolution: Evolution,
    trial: Trial,
    generations: int,
    log: Log | None = None,
    told: Callable[[Individual, Individual], None] = lambda latest, best: None,
) -> list[Individual]:
    """All individuals of a search, in the order in which they were drawn.

    Args:
        evolution: at its beginning.
        trial: tries candidates out.
        generations: how many are bred after the first, random one; fewer if nothing new can be found.
        log: where outcomes are kept and looked up.
        told: called with every individual and the best one so far.
    """
    history: list[Individual] = []
    best: Individual | None = None
    for _ in range(generations + 1):
        try:
            drafts = evolution.ask()
        except Exhausted:
            break
        limit = MARGIN * evolution.population[-1].rank[0] if evolution.population else math.inf
        found = []
        for individual in _tried(drafts, trial, limit, log):
            found.append(individual)
            best = min(best or individual, individual, key=lambda each: each.rank)
            told(individual, best)
        evolution.tell(found)
        history += found
    return history


def _tried(drafts: Sequence[Draft], trial: Trial, limit: float, log: Log | None) -> Iterator[Individual]:
    known = [log.outcome(draft) if log else None for draft in drafts]
    missing = trial([draft.genome for draft, seen in zip(drafts, known, strict=True) if seen is None], limit)
    for draft, outcome in zip(drafts, known, strict=True):
        individual = Individual(draft, outcome or next(missing))
        if outcome is None and log:
            log.write(individual)
        yield individual


def one_by_one(fitness: Callable[[str, float], Outcome]) -> Trial:
    """A trial that takes one candidate after the other."""

    def trial(genomes: Sequence[str], limit: float) -> Iterator[Outcome]:
        return (fitness(genome, limit) for genome in genomes)

    return trial
