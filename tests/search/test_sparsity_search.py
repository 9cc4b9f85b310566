"""The search for a sparsity per block: the space, the fitness, its files, what it refuses."""

from __future__ import annotations

import argparse
import json
import os
import pickle
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import modicum
from modicum.api.searching import search_sparsity
from modicum.cli.app import app
from modicum.cli.failures import explain
from modicum.data.text import load_text
from modicum.data.windows import windows
from modicum.errors import InvalidSetting, OutputExists, UnknownName
from modicum.models import Anatomy
from modicum.pipeline import recipe as recipes
from modicum.pipeline.loading import load_tokenizer
from modicum.prune.wanda import Wanda
from modicum.search.evolution import Evolution
from modicum.search.found import SparsitySearch
from modicum.search.individual import Individual, Outcome
from modicum.search.scored_blocks import ScoredBlocks, Shared, collect_scores
from modicum.search.shares import MOST, MOVES, STEP, Shares, SharesSpace

SMALL: dict[str, Any] = {
    "population": 4,
    "generations": 1,
    "sparsity": 0.6,
    "samples": 4,
    "length": 32,
    "windows": 4,
    "seed": 5,
    "source": argparse.__file__,
}
SIZES = st.lists(st.integers(1, 2000), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def tiny(tiny_models: Any) -> Path:
    return tiny_models("llama")


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SparsitySearch, Path]:
    """A search with its directory; never write there."""
    out = tmp_path_factory.mktemp("finished-sparsity")
    return search_sparsity(tiny, out, **SMALL), out


@pytest.fixture(scope="module")
def fitness(finished: tuple[SparsitySearch, Path], tiny: Path) -> Shared:
    maker = ScoredBlocks(tiny, finished[1] / "statistics.safetensors", Wanda(sparsity=0.6))
    return pickle.loads(pickle.dumps(maker))()  # as a worker gets it


def mean(values: tuple[float, ...], sizes: tuple[int, ...]) -> float:
    return sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)


class TestSpace:
    @settings(max_examples=60, deadline=None)
    @given(sizes=SIZES, sparsity=st.floats(0.05, 0.9), seed=st.integers(0, 2**32))
    def test_the_mean_is_kept_within_the_bounds(self, sizes: list[int], sparsity: float, seed: int) -> None:
        space, generator = SharesSpace(tuple(sizes), sparsity), Random(seed)
        first, second = (space.random(generator)[0] for _ in range(2))
        children = [way.make(first, second, space, generator) for way in MOVES.values()]
        for shares in (space.uniform(), first, second, *children):
            assert mean(shares.values, space.sizes) == pytest.approx(sparsity, abs=1e-6)
            assert all(-1e-6 <= value <= MOST + 1e-6 for value in shares.values)
            assert Shares.read(str(shares)).values == shares.values

    @pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.333])
    def test_equal_blocks_lie_on_the_grid(self, sparsity: float) -> None:
        space = SharesSpace((7,) * 5, sparsity)
        shares, _ = space.random(Random(3))
        for value in shares.values:
            steps = (value - sparsity) / STEP
            assert steps == pytest.approx(round(steps), abs=1e-4)
        assert space.levelled(space.steps(shares), Random(0)) == shares

    def test_a_move_changes_two_blocks_by_as_much(self) -> None:
        space = SharesSpace((7,) * 5, 0.5)
        for seed in range(20):
            moved = space.steps(MOVES["move"].make(space.uniform(), space.uniform(), space, Random(seed)))
            assert sorted(map(abs, moved))[:3] == [0, 0, 0]
            assert sum(moved) == 0
            assert 1 <= max(moved) <= 3

    def test_a_crossing_of_equals_is_the_same(self) -> None:
        space = SharesSpace((3, 5, 9), 0.5)
        shares, _ = space.random(Random(1))
        assert MOVES["cross"].make(shares, shares, space, Random(2)) == shares

    def test_what_is_near_is_found(self) -> None:
        space = SharesSpace((4,) * 4, 0.5)
        assert space.nearest([0.44, 0.56, 0.5, 0.5], Random(0)).values == (0.45, 0.55, 0.5, 0.5)

    def test_evolution_finds_the_best_sparsities(self) -> None:
        """With losses (s_b - t_b)^2 the targets t are the answer."""
        space, target = SharesSpace((1,) * 6, 0.5), (0.35, 0.425, 0.5, 0.525, 0.6, 0.6)
        evolution = Evolution(space, 20, Random(0), [space.uniform()])

        def loss(shares: Shares) -> float:
            return sum((a - b) ** 2 for a, b in zip(shares.values, target, strict=True))

        for _ in range(25):
            evolution.tell([Individual(each, Outcome(loss(each.genotype))) for each in evolution.ask()])
        assert evolution.best.draft.genotype.values == target


def test_the_fitness_is_the_perplexity_after_the_method(tiny: Path, fitness: Shared) -> None:
    """The masks are those of a run of the method with that table on the dense model's values."""
    genome = "0.5 0.6 0.7"
    first = fitness(genome)
    fitness("0.7 0.5 0.6")  # leaves nothing behind
    assert fitness(genome).fitness == first.fitness
    drawn = windows(load_text(argparse.__file__, "train"), load_tokenizer(tiny), 32, 8, 5)
    table = dict(zip((block.name for block in fitness.blocks), (0.5, 0.6, 0.7), strict=True))
    recipe = recipes.Recipe.of(Wanda(sparsity=0.6, allocation=table), propagate_error=False)
    pruned = modicum.compress(modicum.load(tiny, dtype=torch.float32), recipe, data=drawn[:4])
    for layer, own in zip(Anatomy.of(pruned).layers(), fitness.anatomy.layers(), strict=True):
        assert torch.equal(layer.weight, own.weight)


def test_a_share_of_the_text_is_enough_for_what_is_hopeless(fitness: Shared) -> None:
    whole, early = fitness("0.6 0.6 0.6"), fitness("0.6 0.6 0.6", limit=1.0)
    assert (whole.full, early.full) == (True, False)
    assert early.fitness != whole.fitness
    assert early.fitness == pytest.approx(whole.fitness, rel=0.5)


def test_scores_of_gradients_and_settings_of_the_method(tiny: Path, tmp_path: Path) -> None:
    model = modicum.load(tiny, dtype=torch.float32)
    drawn = windows(load_text(argparse.__file__, "train"), load_tokenizer(tiny), 32, 8, 5)
    method = modicum.method.build("prune.pruner_zero", {"metric": "gblm", "sparsity": 0.6, "skip": ["down"]})
    collect_scores(deepcopy(model), method, drawn[:4], drawn[4:], tmp_path / "statistics.safetensors")
    fitness = ScoredBlocks(tiny, tmp_path / "statistics.safetensors", method)()
    assert fitness("0.6 0.6 0.6").fitness is not None
    pruned = modicum.compress(model, method, data=drawn[:4])
    wanted = {layer.name: layer.weight for layer in Anatomy.of(pruned).blocks[0].layers}  # before it: dense
    for layer in fitness.anatomy.blocks[0].layers:
        assert torch.equal(layer.weight, wanted[layer.name])
    assert fitness.zeros() == pytest.approx(0.6, abs=0.02)


def test_what_it_finds_is_not_worse_than_what_it_began_with(finished: tuple[SparsitySearch, Path]) -> None:
    found, _ = finished
    own, uniform, owl = found.allocations
    assert own.fitness <= min(uniform.fitness, owl.fitness)
    assert {*uniform.sparsities} == {0.6}
    assert [entry.operator for entry in found.entries[:2]] == ["start", "start"]
    for allotted in found.allocations:
        assert sum(allotted.sparsities) / 3 == pytest.approx(0.6)
        assert allotted.zeros == pytest.approx(0.6, abs=0.02)
    assert len(found.generation_seconds) == 2


def test_what_it_leaves(finished: tuple[SparsitySearch, Path], tiny: Path) -> None:
    found, out = finished
    table = json.loads((out / "sparsity.json").read_text())
    assert table == found.table == dict(zip(found.blocks, found.found.sparsities, strict=True))
    (step,) = recipes.load(out / "best.yaml").steps
    assert isinstance(step, Wanda)
    assert step.allocation.to_dict() == table
    assert Wanda(sparsity=0.6, allocation=str(out / "sparsity.json")).allocation == step.allocation


def test_a_stopped_search_goes_on(finished: tuple[SparsitySearch, Path], tiny: Path, tmp_path: Path) -> None:
    def stop(latest: Individual[Any], best: Individual[Any]) -> None:
        if latest.draft.number == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_sparsity(tiny, tmp_path, progress=stop, **SMALL)
    before = (tmp_path / "search.jsonl").read_bytes()
    again = search_sparsity(tiny, tmp_path, **SMALL)
    assert (tmp_path / "search.jsonl").read_bytes().startswith(before)
    assert again.allocations == finished[0].allocations


class TestRefusals:
    def test_the_directory_of_another_search(self, finished: tuple[SparsitySearch, Path], tiny: Path) -> None:
        with pytest.raises(OutputExists, match=r"sparsity 0\.6, not 0\.5"):
            search_sparsity(tiny, finished[1], **{**SMALL, "sparsity": 0.5})

    @pytest.mark.parametrize(
        ("given", "complaint"),
        [
            ({"method": "prune.sparsegpt"}, "scores"),
            ({"options": {"pattern": "2:4"}}, "pattern"),
            ({"options": {"allocation": "owl"}}, "allocation"),
            ({"sparsity": 0.99}, "sparsity"),
        ],
    )
    def test_settings(self, given: dict[str, Any], complaint: str, tiny: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidSetting, match=complaint):
            search_sparsity(tiny, tmp_path / "out", **{**SMALL, **given})
        assert not (tmp_path / "out").exists()

    def test_names(self, tiny: Path, tmp_path: Path) -> None:
        with pytest.raises(UnknownName, match="wnda"):
            search_sparsity(tiny, tmp_path / "out", **SMALL, method="prune.wnda")


def test_the_command(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    line = f"search sparsity {tiny} --method prune.magnitude --set scope=row --sparsity 0.6 --population 3"
    line += (
        f" --generations 1 --samples 2 --length 32 --windows 2 --workers 1 --calibration {argparse.__file__}"
    )
    assert explain(app, [*line.split(), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert set(os.listdir(out)) == {
        "best.yaml", "report.html", "report.json", "search.jsonl", "sparsity.json", "statistics.safetensors",
    }  # fmt: skip
    assert f"--set allocation={out / 'sparsity.json'}" in shown
    found = SparsitySearch.load(out / "report.json")
    assert found.settings.options == {"scope": "row"}
    assert all(name in (out / "report.html").read_text() for name in ("uniform", "OWL", found.blocks[2]))
    assert explain(app, [*line.split(), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["table"] == found.table
