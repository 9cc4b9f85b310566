"""The search for pruning metrics on a tiny model: its fitness, its workers, its files, what it refuses."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import types
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import modicum
from modicum import zoo
from modicum.api.searching import search_prune_metric
from modicum.cli.app import app
from modicum.cli.failures import explain
from modicum.data.text import load_text
from modicum.data.windows import windows
from modicum.errors import InvalidSetting, MissingExtra, OutputExists, UnsupportedModel, WorkerLost
from modicum.formats.shards import Shards
from modicum.models import Anatomy
from modicum.pipeline import recipe as recipes
from modicum.pipeline.loading import load_tokenizer
from modicum.prune.metrics import METRICS
from modicum.prune.pruner_zero import PrunerZero
from modicum.search.found import MetricSearch
from modicum.search.individual import Individual, Outcome
from modicum.search.proxy import Proxy, collect
from modicum.search.workers import crew, one_thread, processes

SMALL: dict[str, Any] = {
    "population": 4,
    "generations": 1,
    "samples": 4,
    "length": 32,
    "windows": 4,
    "seed": 5,
    "source": argparse.__file__,
}


@pytest.fixture(scope="module")
def tiny(tiny_models: Any) -> Path:
    return tiny_models("llama")


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[MetricSearch, Path]:
    """A search with its directory; never write there."""
    out = tmp_path_factory.mktemp("finished")
    return search_prune_metric(tiny, out, starts=("wanda", "pruner_zero"), **SMALL), out


def log_of(out: Path) -> list[Any]:
    """The log without what depends on the clock."""
    lines = [json.loads(line) for line in (out / "search.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in ("seconds", "elapsed")} for line in lines
    ]


@pytest.mark.parametrize("metric", ["magnitude", "pruner_zero"])
def test_the_fitness_is_the_perplexity_after_the_method(metric: str, tiny: Path, tmp_path: Path) -> None:
    model = modicum.load(tiny, dtype=torch.float32)
    drawn = windows(load_text(argparse.__file__, "train"), load_tokenizer(tiny), 32, 8, 0)
    collect(deepcopy(model), drawn[:4], drawn[4:], tmp_path / "statistics.safetensors")
    fitness = Proxy(tiny, tmp_path / "statistics.safetensors", 0.5)()
    pruned = modicum.compress(model, PrunerZero(metric=metric), data=drawn[:4])
    first = fitness(METRICS[metric])
    fitness("-abs(W)")  # leaves nothing behind
    assert fitness(METRICS[metric]).fitness == first.fitness
    expected = {layer.name: layer.weight for layer in Anatomy.of(pruned).layers()}
    fitness(METRICS[metric])
    assert all(torch.equal(layer.weight, expected[layer.name]) for layer in fitness.layers)


def test_a_hopeless_candidate_is_given_up_and_nan_is_no_fitness(
    finished: tuple[MetricSearch, Path], tiny: Path
) -> None:
    fitness = Proxy(tiny, finished[1] / "statistics.safetensors", 0.5)()
    whole, early = fitness("abs(W)"), fitness("abs(W)", limit=1.0)
    assert whole.full
    assert not early.full
    assert early.fitness == pytest.approx(whole.fitness, rel=0.5)
    assert early.fitness != whole.fitness
    assert fitness("sqr(exp(1e9 * abs(W)))").fitness is None


def test_it_is_not_worse_than_what_it_began_with(finished: tuple[MetricSearch, Path]) -> None:
    found, _ = finished
    prices = {metric.name: metric.fitness for metric in found.metrics}
    assert prices["found"] <= min(prices["wanda"], prices["pruner_zero"])
    assert [entry.operator for entry in found.entries[:2]] == ["start", "start"]


def test_what_it_leaves(finished: tuple[MetricSearch, Path]) -> None:
    found, out = finished
    recipe = recipes.load(out / "best.yaml")
    (step,) = recipe.steps
    assert isinstance(step, PrunerZero)
    assert step.metric == found.found.formula
    assert (recipe.seed, recipe.calibration.samples, recipe.calibration.length) == (5, 4, 32)
    assert len(log_of(out)) == 1 + len(found.entries) == 9
    assert found.ancestors()[-1] == found.best


def test_another_process_comes_to_the_same(finished: tuple[MetricSearch, Path], tiny: Path) -> None:
    maker = Proxy(tiny, finished[1] / "statistics.safetensors", 0.5)
    genomes = [entry.genome for entry in finished[0].entries[:3]]
    with one_thread(), processes(maker, 1) as trial:
        theirs = [each.fitness for each in trial(genomes, math.inf)]
    assert theirs == [entry.fitness for entry in finished[0].entries[:3]]


def test_a_stopped_search_goes_on(finished: tuple[MetricSearch, Path], tiny: Path, tmp_path: Path) -> None:
    def stop(latest: Individual, best: Individual) -> None:
        if latest.draft.number == 5:
            raise KeyboardInterrupt

    options = {**SMALL, "starts": ("wanda", "pruner_zero")}
    with pytest.raises(KeyboardInterrupt):
        search_prune_metric(tiny, tmp_path, progress=stop, **options)
    before = (tmp_path / "search.jsonl").read_bytes()
    statistics = (tmp_path / "statistics.safetensors").stat().st_mtime_ns
    again = search_prune_metric(tiny, tmp_path, **options)
    assert (tmp_path / "search.jsonl").read_bytes().startswith(before)
    assert (tmp_path / "statistics.safetensors").stat().st_mtime_ns == statistics
    assert again.metrics == finished[0].metrics


class TestWorkers:
    def test_a_killed_worker_ends_in_a_sentence(self) -> None:
        with processes(partial(os._exit, 9), 1) as trial, pytest.raises(WorkerLost, match="killed"):
            list(trial(["a"], 1.0))

    def test_a_cluster_needs_ray(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(MissingExtra, match="ray"), crew(partial(os._exit, 9), 2, "auto"):
            pass

    def test_a_cluster_gets_the_work_in_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stand_in = StandIn()
        for name in ("ray", "ray.util", "ray.exceptions"):
            monkeypatch.setitem(sys.modules, name, stand_in)
        with crew(lambda: lambda genome, limit: Outcome(len(genome) + limit), 2, "ray://head:10001") as trial:
            assert [each.fitness for each in trial(["a", "bbb", "cc"], 10.0)] == [11, 13, 12]
            assert len(stand_in.actors) == 2
        assert stand_in.calls == ["init ray://head:10001", "shutdown"]

    def test_a_lost_node_ends_in_a_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stand_in = StandIn()
        for name in ("ray", "ray.util", "ray.exceptions"):
            monkeypatch.setitem(sys.modules, name, stand_in)

        def lost(genome: str, limit: float) -> Outcome:
            raise stand_in.RayError

        with crew(lambda: lost, 1, "auto") as trial, pytest.raises(WorkerLost, match="RayError"):
            list(trial(["a"], 1.0))
        assert stand_in.calls[-1] == "shutdown"


class StandIn(types.ModuleType):
    """As much of Ray as is used: actors that live in this process."""

    class RayError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("ray")
        self.util = self.exceptions = self
        self.calls: list[str] = []
        self.actors: list[Any] = []

    def init(self, address: str, log_to_driver: bool) -> None:
        self.calls.append(f"init {address}")

    def shutdown(self) -> None:
        self.calls.append("shutdown")

    def remote(self, num_cpus: int) -> Callable[[type], Any]:
        return lambda kind: types.SimpleNamespace(remote=lambda make: self._actor(kind(make)))

    def _actor(self, inner: Any) -> Any:
        self.actors.append(inner)
        return types.SimpleNamespace(outcome=types.SimpleNamespace(remote=inner.outcome))

    @staticmethod
    def ActorPool(actors: list[Any]) -> Any:
        def map_(ask: Callable[[Any, str], Any], genomes: list[str]) -> Any:
            return (ask(actors[i % len(actors)], genome) for i, genome in enumerate(genomes))

        return types.SimpleNamespace(map=map_)


class TestRefusals:
    def test_the_directory_of_another_search(self, finished: tuple[MetricSearch, Path], tiny: Path) -> None:
        with pytest.raises(OutputExists, match=r"sparsity 0\.5, not 0\.6"):
            search_prune_metric(tiny, finished[1], starts=("wanda", "pruner_zero"), sparsity=0.6, **SMALL)

    @pytest.mark.parametrize(
        ("given", "complaint"),
        [
            ({"starts": ("wnda",)}, "start"),
            ({"starts": ("W + Q",)}, "start"),
            ({"sparsity": 1.5}, "sparsity"),
            ({"population": 1}, "population"),
        ],
    )
    def test_settings(self, given: dict[str, Any], complaint: str, tiny: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidSetting, match=complaint):
            search_prune_metric(tiny, tmp_path / "out", **{**SMALL, **given})
        assert not (tmp_path / "out").exists()

    def test_models_that_draw(self, tmp_path: Path) -> None:
        with pytest.raises(UnsupportedModel, match="draws images"):
            search_prune_metric(zoo.path("nano-dit"), tmp_path / "out", **SMALL)

    def test_damaged_statistics(
        self, finished: tuple[MetricSearch, Path], tiny: Path, tmp_path: Path
    ) -> None:
        for file in finished[1].iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes()[: None if file.suffix == ".jsonl" else 50])
        with pytest.raises(modicum.ModicumError, match="statistics"):
            search_prune_metric(tiny, tmp_path, starts=("wanda", "pruner_zero"), **SMALL)


def test_the_command(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    line = f"search prune-metric {tiny} --population 3 --generations 1 --samples 2 --length 32 --windows 2 --workers 1"
    line += f" --calibration {argparse.__file__}"
    assert explain(app, [*line.split(), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert {"best.yaml", "report.html", "report.json", "search.jsonl", "statistics.safetensors"} == set(
        os.listdir(out)
    )
    found = MetricSearch.load(out / "report.json")
    assert f'--set metric="{found.found.formula}"' in shown
    assert Shards(out / "statistics.safetensors").read("text").shape == (2, 32)
    assert explain(app, [*line.split(), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"][0]["formula"] == found.found.formula
