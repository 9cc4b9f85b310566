"""What searches on a language model have in common: their texts, files and identity, and how they are run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Generic, Protocol

import torch
from torch import Tensor

from modicum.data.text import load_text
from modicum.data.windows import windows as cut_windows
from modicum.evaluate.environment import environment
from modicum.formats.shards import Shards
from modicum.pipeline.loading import load_tokenizer
from modicum.search.evolution import Evolution
from modicum.search.found import Asked, Entry
from modicum.search.genotype import G
from modicum.search.individual import Individual
from modicum.search.log import Log
from modicum.search.loop import evolve
from modicum.search.pricing import Pricing
from modicum.search.workers import crew

HELD_OUT = 4  # times as many windows as a candidate is evaluated on
LOG, STATISTICS, BEST = "search.jsonl", "statistics.safetensors", "best.yaml"

Told = Callable[[Individual[Any], Individual[Any]], None]
"""Is given every candidate and the best one so far."""


class Maker(Protocol):
    """Makes the fitness, here or in another process."""

    def __call__(self) -> Pricing:
        """The fitness."""


@dataclass(frozen=True)
class Texts:
    """Windows of tokens, int64 [windows, length] each.

    Attributes:
        calibration: what scores are computed from.
        search: what candidates are evaluated on.
        unseen: what only the finished search is evaluated on.
    """

    calibration: Tensor
    search: Tensor
    unseen: Tensor

    @classmethod
    def of(cls, model: Path, asked: Asked) -> Texts:
        """Drawn as a search is asked."""
        tokenizer, count = load_tokenizer(model), asked.windows
        known, unseen = (load_text(asked.source, split) for split in ("train", "heldout"))
        drawn = cut_windows(known, tokenizer, asked.length, asked.samples + count, asked.seed)
        held_out = cut_windows(unseen, tokenizer, asked.length, HELD_OUT * count, asked.seed)
        return cls(drawn[: asked.samples], drawn[asked.samples :], held_out)


def open_log(search: str, model: Path, out: Path, asked: Asked, texts: Texts) -> Log:
    """The log in `out`; what it depends on is not how many generations there are, nor who tries candidates out.

    Raises:
        OutputExists: it is that of another search.
        CheckpointError: it is damaged.
    """
    tokens = torch.cat([texts.calibration, texts.search]).numpy().tobytes()
    identity = {
        "search": search,
        "model": model.name,
        **asked.model_dump(mode="json", exclude={"generations"}),
        "tokens_sha256": sha256(tokens).hexdigest(),
        "files": Shards(model).fingerprint(),
    }
    return Log(out / LOG, identity)


@dataclass(frozen=True)
class Bred(Generic[G]):
    """All candidates and the best one."""

    history: Sequence[Individual[G]]
    best: Individual[G]

    def facts(self, model: Path, fitness: Pricing, dense_held_out: float) -> dict[str, Any]:
        """Fields that the record of every search has."""
        return {
            "model": model.name,
            "entries": [_entry(each) for each in self.history],
            "draws": sum(each.draft.draws for each in self.history),
            "best": self.best.draft.number,
            "dense": fitness.dense,
            "dense_held_out": dense_held_out,
            "seconds": sum(each.outcome.seconds for each in self.history),
            "environment": environment(),
        }


@dataclass(frozen=True)
class Hands:
    """Who tries candidates out; results do not depend on it.

    Attributes:
        workers: processes, or actors on the cluster.
        ray: address of a Ray cluster.
    """

    workers: int = 1
    ray: str | None = None


def breed(
    evolution: Evolution[G],
    fitness: Pricing,
    maker: Maker,
    hands: Hands,
    generations: int,
    log: Log,
    told: Told,
) -> Bred[G]:
    """Run a search to its end.

    Args:
        evolution: at its beginning.
        fitness: in this process; the one that is used if there is one worker.
        maker: of that of other workers.
        hands: who tries candidates out.
        generations: after the first one.
        log: of the search.
        told: see `Told`.

    Raises:
        WorkerLost: a process was killed.
    """
    alone = hands.workers == 1 and hands.ray is None
    with crew((lambda: fitness) if alone else maker, hands.workers, hands.ray) as trial:
        history = evolve(evolution, trial, generations, log, told)
    return Bred(history, evolution.best)


def _entry(individual: Individual[Any]) -> Entry:
    draft, outcome = individual.draft, individual.outcome
    return Entry(
        genome=draft.genome,
        generation=draft.generation,
        operator=draft.operator,
        parents=draft.parents,
        fitness=outcome.fitness,
        full=outcome.full,
        size=draft.genotype.size,
        seconds=outcome.seconds,
        elapsed=individual.elapsed,
    )
