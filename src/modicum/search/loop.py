"""The loop of a search: ask, look into the log, try out what is not there, tell."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

from modicum.search.evolution import Evolution, Exhausted
from modicum.search.genotype import G
from modicum.search.individual import Draft, Individual, Outcome
from modicum.search.log import Log

Trial = Callable[[Sequence[str], float], Iterator[Outcome]]
"""Outcomes of genomes, in their order; a candidate that is surely worse than the limit may be given up early."""

MARGIN = 1.25  # times the worst of the population: what is estimated to be beyond is given up


def evolve(
    evolution: Evolution[G],
    trial: Trial,
    generations: int,
    log: Log | None = None,
    told: Callable[[Individual[G], Individual[G]], None] = lambda latest, best: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Individual[G]]:
    """All individuals of a search, in the order in which they were drawn.

    Args:
        evolution: at its beginning.
        trial: tries candidates out.
        generations: how many are bred after the first, random one; fewer if nothing new can be found.
        log: where outcomes are kept and looked up.
        told: called with every individual and the best one so far.
        clock: gives the seconds.
    """
    history: list[Individual[G]] = []
    best: Individual[G] | None = None
    for _ in range(generations + 1):
        try:
            drafts = evolution.ask()
        except Exhausted:
            break
        limit = MARGIN * evolution.population[-1].rank[0] if evolution.population else math.inf
        found = []
        for individual in _tried(drafts, trial, limit, log, clock):
            found.append(individual)
            best = min(best or individual, individual, key=lambda each: each.rank)
            told(individual, best)
        evolution.tell(found)
        history += found
    return history


def _tried(
    drafts: Sequence[Draft[G]], trial: Trial, limit: float, log: Log | None, clock: Callable[[], float]
) -> Iterator[Individual[G]]:
    known = [log.found(draft) if log else None for draft in drafts]
    # What an earlier run spent on this generation counts.
    began = clock() - max((individual.elapsed for individual in known if individual), default=0.0)
    missing = trial([draft.genome for draft, seen in zip(drafts, known, strict=True) if seen is None], limit)
    for draft, individual in zip(drafts, known, strict=True):
        if individual is None:
            outcome = next(missing)
            individual = Individual(draft, outcome, clock() - began)
            if log:
                log.write(individual)
        yield individual


def one_by_one(fitness: Callable[[str, float], Outcome]) -> Trial:
    """A trial that takes one candidate after the other."""

    def trial(genomes: Sequence[str], limit: float) -> Iterator[Outcome]:
        return (fitness(genome, limit) for genome in genomes)

    return trial
