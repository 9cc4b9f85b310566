"""A sparsity per block, found by evolution: the mean is fixed, and the blocks that bear more of it give to the others.

Every candidate prunes a small language model by the scores of one method, each block as far as it says; those that
leave it the lowest perplexity breed. The search begins with equal sparsities and those of OWL (outlier weighed
layerwise sparsity, arXiv 2310.05175), so that on its own text it never ends behind them.

Evolution on a grid at a fixed total is as in EvoPress (Sieberling et al., ICML 2025, arXiv 2410.14649), with a
population that breeds instead of one parent with many children.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch
from torch import Tensor

from modicum.allocate.sparsity import Owl
from modicum.errors import InvalidSetting
from modicum.formats.shards import write_json
from modicum.method import build
from modicum.pipeline.loading import load_model
from modicum.pipeline.recipe import Recipe
from modicum.prune.scored import Scored
from modicum.search.evolution import Evolution
from modicum.search.found import Allotted, SparsitySearch, SparsitySettings
from modicum.search.scored_blocks import ScoredBlocks, Shared, collect_scores
from modicum.search.session import BEST, STATISTICS, Bred, Hands, Texts, Told, breed, open_log
from modicum.search.shares import Shares, SharesSpace
from modicum.search.workers import one_thread

TABLE = "sparsity.json"


def search_sparsity(
    model: Path,
    out: Path,
    settings: SparsitySettings,
    hands: Hands = Hands(),
    told: Told = lambda latest, best: None,
) -> SparsitySearch:
    """Search, or go on with a search that was stopped.

    Writes `search.jsonl` (every candidate), `statistics.safetensors` (the scores of the weights), `sparsity.json` (the
    best sparsities by the names of the blocks) and `best.yaml` (a recipe with them) into `out`.

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
        UnknownName: there is no such method or no such setting.
        InvalidSetting: the method gives weights no scores, or no candidate gave a finite perplexity.
    """
    method = scored(settings)
    texts = Texts.of(model, settings)
    log = open_log("sparsity", model, out, settings, texts)
    maker = ScoredBlocks(model, out / STATISTICS, method)
    with one_thread():
        if not log.known or not maker.statistics.exists():
            dense = load_model(model, torch.float32)
            collect_scores(dense, method, texts.calibration, texts.search, maker.statistics)
        fitness = maker()
        space, generator = SharesSpace(fitness.sizes, settings.sparsity), Random(settings.seed)
        starts = [space.uniform(), space.nearest(_owl(fitness, settings.sparsity), generator)]
        evolution = Evolution(space, settings.population, generator, starts)
        bred = breed(evolution, fitness, maker, hands, settings.generations, log, told)
        found = _summary(model, settings, bred, fitness, starts, texts.unseen)
    write_json(out / TABLE, found.table)
    (out / BEST).write_text(_recipe(method, found).to_yaml())
    return found


def scored(settings: SparsitySettings) -> Scored:
    """The method whose scores say which weights go.

    Raises:
        UnknownName: there is no such method or no such setting.
        InvalidSetting: it gives no scores, or its sparsity is not free.
    """
    method = build(settings.method, {**settings.options, "sparsity": settings.sparsity})
    if not isinstance(method, Scored):
        raise InvalidSetting(
            f"{method.name} does not prune by scores of single weights.",
            "Search with prune.wanda, prune.magnitude, prune.ace or prune.pruner_zero.",
        )
    if method.pattern is not None or method.allocation != "uniform":
        raise InvalidSetting(
            "Neither a pattern nor an allocation can be set where the sparsities are searched for.",
            "Leave pattern and allocation out.",
        )
    return method


def _owl(fitness: Shared, sparsity: float) -> list[float]:
    return Owl().sparsities(fitness.outliers, fitness.sizes, sparsity)


def _summary(
    model: Path,
    settings: SparsitySettings,
    bred: Bred[Shares],
    fitness: Shared,
    starts: list[Shares],
    unseen: Tensor,
) -> SparsitySearch:
    if bred.best.outcome.fitness is None:
        raise InvalidSetting("No candidate left the model a finite perplexity.", "Lower the sparsity.")
    compared = dict(zip(("found", "uniform", "OWL"), [bred.best.draft.genotype, *starts], strict=True))
    fitness.restore()
    dense, *_ = fitness.held_out([], unseen)
    allocations = [_allotted(name, shares, fitness, unseen) for name, shares in compared.items()]
    return SparsitySearch(
        settings=settings,
        blocks=tuple(block.name for block in fitness.blocks),
        allocations=allocations,
        **bred.facts(model, fitness, dense),
    )


def _allotted(name: str, shares: Shares, fitness: Shared, unseen: Tensor) -> Allotted:
    genome = str(shares)
    price = fitness(genome).fitness
    _, held_out = fitness.held_out([genome], unseen)
    return Allotted(
        name=name,
        sparsities=shares.values,
        fitness=float("inf") if price is None else price,
        held_out=held_out,
        zeros=fitness.zeros(),
    )


def _recipe(method: Scored, found: SparsitySearch) -> Recipe:
    """A recipe that prunes exactly as the search did: by statistics of the dense model."""
    asked = found.settings
    step = build(method.name, {**asked.options, "sparsity": asked.sparsity, "allocation": found.table})
    return Recipe.of(
        step,
        seed=asked.seed,
        source=asked.source,
        samples=asked.samples,
        length=asked.length,
        propagate_error=False,
    )
