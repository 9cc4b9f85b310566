"""The search of Pruner-Zero: a formula that says which weights of a language model can go.

Random formulas over |W|, X (norms of the inputs) and G (sizes of the gradients) prune a small model; those that leave
it the lowest perplexity breed. Pruner-Zero: Evolving Symbolic Pruning Metric from Scratch for Large Language Models,
ICML 2024, arXiv 2406.02924.

What departs from it: its search loop was not published, so the loop is one of whole generations with tournaments and
elites, which many workers can share without changing its result. X may stand directly under an operation (here it
broadcasts). A quotient is one of entries, not one by a Frobenius norm, which would leave every ranking as it is. Sums
over rows and columns are operations too, so that RIA is within reach.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch
from torch import Tensor

from modicum.errors import InvalidSetting
from modicum.pipeline.loading import load_model
from modicum.pipeline.recipe import Recipe
from modicum.prune.metrics import INPUTS, METRICS, normalised
from modicum.prune.pruner_zero import PrunerZero
from modicum.search.evolution import Evolution
from modicum.search.found import MetricSearch, Named, Settings
from modicum.search.grammar import Grammar, Trees
from modicum.search.proxy import MAGNITUDE, Proxy, Pruned, collect, read
from modicum.search.session import BEST, STATISTICS, Bred, Hands, Texts, Told, breed, open_log
from modicum.search.workers import one_thread
from modicum.symbolic import Node, Rules, canonical, parse, symbol

GRAMMAR = Grammar(
    terminals=(symbol(MAGNITUDE), symbol("X"), symbol("G")),
    unary=("sqr", "neg", "abs", "log", "exp", "sqrt", "tanh", "mms", "zsn", "rowsum", "colsum"),
    binary=("add", "sub", "mul", "div"),
)
CORNER = 16, 32  # rows and columns of the example that tells behaviour
LARGEST, DEEPEST = 20, 6  # nodes and levels of what is bred


def search_metric(
    model: Path,
    out: Path,
    settings: Settings,
    hands: Hands = Hands(),
    told: Told = lambda latest, best: None,
) -> MetricSearch:
    """Search, or go on with a search that was stopped.

    Writes `search.jsonl` (every candidate), `statistics.safetensors` (what metrics read of the model) and `best.yaml`
    (a recipe with the best metric) into `out`.

    Args:
        model: directory of a language model.
        out: a new directory, or that of the search to go on with; more generations may be asked for than before.
        settings: what the search depends on.
        hands: who tries candidates out; the result does not depend on it.
        told: called with every candidate and the best one so far.

    Raises:
        OutputExists: `out` holds another search.
        CheckpointError: its log is damaged.
        WorkerLost: a process was killed.
        InvalidSetting: a formula to start from that is none, or no candidate that gave a finite perplexity.
    """
    starts = [canonical(read(METRICS.get(text, text))) for text in map(_checked, settings.starts)]
    texts = Texts.of(model, settings)
    log = open_log("prune-metric", model, out, settings, texts)
    proxy = Proxy(model, out / STATISTICS, settings.sparsity)
    with one_thread():
        if not log.known or not proxy.statistics.exists():
            collect(load_model(model, torch.float32), texts.calibration, texts.search, proxy.statistics)
        fitness = proxy()
        evolution = Evolution(_trees(fitness), settings.population, Random(settings.seed), starts)
        bred = breed(evolution, fitness, proxy, hands, settings.generations, log, told)
        found = _summary(model, settings, bred, fitness, texts.unseen)
    (out / BEST).write_text(_recipe(found).to_yaml())
    return found


def _checked(text: str) -> str:
    try:
        return normalised(text)
    except ValueError as error:
        raise InvalidSetting(
            f"A formula to start from: {error}", "See `modicum show prune.pruner_zero`."
        ) from error


def _trees(fitness: Pruned) -> Trees:
    """The search space; behaviour is told by a corner of a real layer."""
    corner = fitness.slice(*CORNER)
    rules = Rules(largest=LARGEST, deepest=DEEPEST, shape=tuple(corner["W"].shape))
    return Trees(GRAMMAR, rules, [corner], CORNER)


def _summary(
    model: Path, settings: Settings, bred: Bred[Node], fitness: Pruned, unseen: Tensor
) -> MetricSearch:
    best = bred.best
    if best.outcome.fitness is None:
        raise InvalidSetting("No candidate left the model a finite perplexity.", "Lower the sparsity.")
    formulas = {"found": str(canonical(parse(best.draft.genome, INPUTS))), **METRICS}
    known = [fitness(text).fitness for text in METRICS.values()]
    dense, *prices = fitness.held_out(list(formulas.values()), unseen)
    metrics = [
        Named(
            name=name,
            formula=text,
            size=parse(text, INPUTS).size,
            fitness=price if price is not None else float("inf"),
            held_out=other,
        )
        for (name, text), price, other in zip(
            formulas.items(), [best.outcome.fitness, *known], prices, strict=True
        )
    ]
    facts = bred.facts(model, fitness, dense)
    # To the search |W| is one letter; beside published formulas all are counted alike.
    entries = [each.model_copy(update={"size": parse(each.genome, INPUTS).size}) for each in facts["entries"]]
    return MetricSearch(settings=settings, metrics=metrics, **{**facts, "entries": entries})


def _recipe(found: MetricSearch) -> Recipe:
    asked = found.settings
    step = PrunerZero(sparsity=asked.sparsity, metric=found.found.formula)
    return Recipe.of(step, seed=asked.seed, source=asked.source, samples=asked.samples, length=asked.length)
