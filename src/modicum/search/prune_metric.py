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

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from modicum.data.text import load_text
from modicum.data.windows import windows as cut_windows
from modicum.errors import InvalidSetting
from modicum.evaluate.environment import environment
from modicum.formats.shards import Shards
from modicum.pipeline.loading import load_model, load_tokenizer
from modicum.pipeline.recipe import Recipe
from modicum.prune.metrics import INPUTS, METRICS, normalised
from modicum.prune.pruner_zero import PrunerZero
from modicum.search.evolution import Evolution
from modicum.search.found import Entry, MetricSearch, Named, Settings
from modicum.search.grammar import Grammar, Trees
from modicum.search.individual import Individual
from modicum.search.log import Log
from modicum.search.loop import evolve
from modicum.search.proxy import MAGNITUDE, Proxy, Pruned, collect, held_out, read
from modicum.search.workers import crew, one_thread
from modicum.symbolic import Rules, canonical, parse, symbol

GRAMMAR = Grammar(
    terminals=(symbol(MAGNITUDE), symbol("X"), symbol("G")),
    unary=("sqr", "neg", "abs", "log", "exp", "sqrt", "tanh", "mms", "zsn", "rowsum", "colsum"),
    binary=("add", "sub", "mul", "div"),
)
CORNER = 16, 32  # rows and columns of the example that tells behaviour
LARGEST, DEEPEST = 20, 6  # nodes and levels of what is bred
HELD_OUT = 4  # times as many windows as a candidate is evaluated on
LOG, STATISTICS, BEST = "search.jsonl", "statistics.safetensors", "best.yaml"

Told = Callable[[Individual, Individual], None]


def search_metric(
    model: Path,
    out: Path,
    settings: Settings,
    workers: int = 1,
    ray: str | None = None,
    told: Told = lambda latest, best: None,
) -> MetricSearch:
    """Search, or go on with a search that was stopped.

    Writes `search.jsonl` (every candidate), `statistics.safetensors` (what metrics read of the model) and `best.yaml`
    (a recipe with the best metric) into `out`.

    Args:
        model: directory of a language model.
        out: a new directory, or that of the search to go on with; more generations may be asked for than before.
        settings: what the search depends on.
        workers: processes, or actors on the cluster; the result does not depend on it.
        ray: address of a Ray cluster.
        told: called with every candidate and the best one so far.

    Raises:
        OutputExists: `out` holds another search.
        CheckpointError: its log is damaged.
        WorkerLost: a process was killed.
        InvalidSetting: a formula to start from that is none, or no candidate that gave a finite perplexity.
    """
    starts = [canonical(read(METRICS.get(text, text))) for text in map(_checked, settings.starts)]
    windows, text, unseen = _texts(model, settings)
    log = Log(out / LOG, _identity(model, settings, windows, text))
    proxy = Proxy(model, out / STATISTICS, settings.sparsity)
    with one_thread():
        if not log.known or not proxy.statistics.exists():
            collect(load_model(model, torch.float32), windows, text, proxy.statistics)
        fitness = proxy()
        evolution = Evolution(_trees(fitness), settings.population, Random(settings.seed), starts)
        alone = workers == 1 and ray is None
        with crew((lambda: fitness) if alone else proxy, workers, ray) as trial:
            history = evolve(evolution, trial, settings.generations, log, told)
        found = _summary(model, settings, history, evolution.best, fitness, unseen)
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


def _texts(model: Path, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Windows of the calibration, of the search, and those that it never sees; int64 [windows, length] each."""
    tokenizer, count = load_tokenizer(model), settings.windows
    known, unseen = (load_text(settings.source, split) for split in ("train", "heldout"))
    drawn = cut_windows(known, tokenizer, settings.length, settings.samples + count, settings.seed)
    held_out = cut_windows(unseen, tokenizer, settings.length, HELD_OUT * count, settings.seed)
    return drawn[: settings.samples], drawn[settings.samples :], held_out


def _identity(model: Path, settings: Settings, windows: Tensor, text: Tensor) -> dict[str, Any]:
    """What the log depends on: not how many generations there are, nor who tries them out."""
    tokens = sha256(torch.cat([windows, text]).numpy().tobytes()).hexdigest()
    asked = settings.model_dump(mode="json", exclude={"generations"})
    return {
        "search": "prune-metric",
        "model": model.name,
        **asked,
        "tokens_sha256": tokens,
        "files": Shards(model).fingerprint(),
    }


def _summary(
    model: Path,
    settings: Settings,
    history: Sequence[Individual],
    best: Individual,
    fitness: Pruned,
    unseen: Tensor,
) -> MetricSearch:
    if best.outcome.fitness is None:
        raise InvalidSetting("No candidate left the model a finite perplexity.", "Lower the sparsity.")
    formula = str(canonical(parse(best.draft.genome, INPUTS)))
    formulas = {"found": formula, **METRICS}
    known = [fitness(text).fitness for text in METRICS.values()]
    dense, *prices = held_out(fitness, list(formulas.values()), unseen)
    return MetricSearch(
        model=model.name,
        settings=settings,
        entries=[_entry(each) for each in history],
        draws=sum(each.draft.draws for each in history),
        best=best.draft.number,
        dense=fitness.dense,
        dense_held_out=dense,
        metrics=[
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
        ],
        seconds=sum(each.outcome.seconds for each in history),
        environment=environment(),
    )


def _entry(individual: Individual) -> Entry:
    draft, outcome = individual.draft, individual.outcome
    return Entry(
        genome=draft.genome,
        generation=draft.generation,
        operator=draft.operator,
        parents=draft.parents,
        fitness=outcome.fitness,
        full=outcome.full,
        size=draft.node.size,
        seconds=outcome.seconds,
    )


def _recipe(found: MetricSearch) -> Recipe:
    asked = found.settings
    step = PrunerZero(sparsity=asked.sparsity, metric=found.found.formula)
    return Recipe.of(step, seed=asked.seed, source=asked.source, samples=asked.samples, length=asked.length)
