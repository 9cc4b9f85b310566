"""Whether genetic programming finds a formula that was planted, and how much sooner than random search.

The target ranks 200 entries by sqrt(|a|) b; a candidate's fitness is 1 - Kendall's tau. Both searches draw from the
same grammar, never try two formulas that rank alike, and stop at 3,000 evaluations.

    python benchmarks/planted_formula.py --seeds 10
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from random import Random
from statistics import median

import torch
from torch import Tensor

from modicum.search import Evolution, Grammar, Individual, Outcome, Trees, Variation
from modicum.search.evolution import Exhausted
from modicum.symbolic import Node, Rules, evaluate, symbol

MOST, POPULATION = 3000, 50
GRAMMAR = Grammar(
    (symbol("a"), symbol("b")),
    ("sqr", "neg", "abs", "log", "exp", "sqrt", "tanh", "mms", "zsn"),
    ("add", "sub", "mul", "div"),
)


def inputs() -> dict[str, Tensor]:
    """The entries: a of both signs, b positive."""
    generator = torch.Generator().manual_seed(0)
    return {"a": torch.randn(200, generator=generator), "b": torch.rand(200, generator=generator) + 0.1}


def order(values: Tensor) -> Tensor:
    """Which of every two entries is larger, [n, n] of -1, 0 and 1."""
    return (values[:, None] - values[None, :]).sign()


def distance(node: Node, known: dict[str, Tensor], wanted: Tensor) -> float:
    """1 - Kendall's tau of an expression and the target."""
    values = evaluate(node, known)
    assert isinstance(values, Tensor)
    count = len(wanted)
    return 1 - float((order(values.expand(count)) * wanted).sum()) / (count * (count - 1))


def evaluations(begin: Callable[[Trees, Random], Evolution[Node]], seed: int) -> int | None:
    """How many candidates were tried until one ranked like the target; None if none did."""
    known = inputs()
    wanted = order(known["a"].abs().sqrt() * known["b"])
    evolution = begin(Trees(GRAMMAR, Rules(largest=15, deepest=4), [known]), Random(seed))
    tried = 0
    while tried < MOST:
        try:
            drafts = evolution.ask()
        except Exhausted:
            return None
        found = [Individual(draft, Outcome(distance(draft.genotype, known, wanted))) for draft in drafts]
        for individual in found:
            tried += 1
            if (individual.outcome.fitness or 0) < 1e-9:
                return tried
        evolution.tell(found)
    return None


RANDOM = {"random": Variation(lambda first, second, trees, generator: trees.random(generator)[0], 1.0)}
"""Children that have nothing of their parents."""

SEARCHES: dict[str, Callable[[Trees, Random], Evolution[Node]]] = {
    "genetic programming": lambda trees, generator: Evolution(trees, POPULATION, generator),
    "random search": lambda trees, generator: Evolution(trees, POPULATION, generator, variations=RANDOM),
}


def main() -> None:
    """Print how often and how soon both find it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    seeds = range(parser.parse_args().seeds)
    for name, begin in SEARCHES.items():
        counts = list(map(partial(evaluations, begin), seeds))
        found = [count for count in counts if count is not None]
        middle = median(count or MOST for count in counts)
        print(f"{name:20}  {len(found)} of {len(seeds)} found, median {middle:g} evaluations: {counts}")


if __name__ == "__main__":
    main()
