"""Where candidates are tried out: in this process, in several processes, or on a Ray cluster.

A fitness is not sent around; what makes it is (`Maker`), and every worker makes its own once. Each worker computes with
one thread, here as well, so that no result depends on where it was found or on how many others work beside it.
"""

from __future__ import annotations

import importlib
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from modicum.errors import MissingExtra, WorkerLost
from modicum.search.individual import Outcome
from modicum.search.loop import Trial, one_by_one

Fitness = Callable[[str, float], Outcome]
"""What a genome is worth, given the limit beyond which nobody wants to know exactly."""

Maker = Callable[[], Fitness]
"""Makes a fitness; it can be pickled."""


@contextmanager
def here(make: Maker) -> Iterator[Trial]:
    """Trials in this process."""
    with one_thread():
        yield one_by_one(make())


@contextmanager
def one_thread() -> Iterator[None]:
    """Within: torch computes with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def processes(make: Maker, workers: int) -> Iterator[Trial]:
    """Trials in processes of their own.

    Raises:
        WorkerLost: one of them was killed.
    """
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawned, initializer=_begin, initargs=(make,)) as pool:

        def trial(genomes: Sequence[str], limit: float) -> Iterator[Outcome]:
            try:
                yield from pool.map(partial(_outcome, limit=limit), genomes)
            except BrokenProcessPool as error:
                raise WorkerLost(
                    "A process of the search was killed.",
                    "The same command goes on where it was; --workers 1 needs the least memory.",
                ) from error

        try:
            yield trial
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_own: list[Fitness] = []  # of this process, made when it began


def _begin(make: Maker) -> None:
    torch.set_num_threads(1)
    _own[:] = [make()]


def _outcome(genome: str, limit: float) -> Outcome:
    return _own[0](genome, limit)


@contextmanager
def ray_cluster(make: Maker, workers: int, address: str) -> Iterator[Trial]:
    """Trials in actors of a Ray cluster, which has to see the files that `make` names under the same paths.

    Raises:
        MissingExtra: Ray is not installed.
    """
    ray = _ray()
    ray.init(address=address, log_to_driver=False)
    try:
        actors = [ray.remote(num_cpus=1)(Actor).remote(make) for _ in range(workers)]

        def trial(genomes: Sequence[str], limit: float) -> Iterator[Outcome]:
            def ask(actor: Any, genome: str) -> Any:
                return actor.outcome.remote(genome, limit)

            try:
                yield from ray.util.ActorPool(actors).map(ask, genomes)
            except ray.exceptions.RayError as error:
                raise WorkerLost(
                    f"A worker on the Ray cluster {address} was lost: {type(error).__name__}.",
                    "The same command goes on where it was.",
                ) from error

        yield trial
    finally:
        ray.shutdown()


class Actor:
    """One worker of a cluster."""

    def __init__(self, make: Maker) -> None:
        torch.set_num_threads(1)
        self.fitness = make()

    def outcome(self, genome: str, limit: float) -> Outcome:
        """What a genome is worth."""
        return self.fitness(genome, limit)


def _ray() -> Any:
    try:
        importlib.import_module("ray.util")
        importlib.import_module("ray.exceptions")
    except ImportError as error:
        raise MissingExtra.of("ray", "ray", "A search on a cluster") from error
    return sys.modules["ray"]


@contextmanager
def crew(make: Maker, workers: int, ray: str | None = None) -> Iterator[Trial]:
    """Trials by as many workers as are asked for.

    Args:
        make: of the fitness.
        workers: how many.
        ray: address of a Ray cluster; None for this machine.
    """
    if ray is not None:
        opened = ray_cluster(make, workers, ray)
    else:
        opened = here(make) if workers == 1 else processes(make, workers)
    with opened as trial:
        yield trial
