"""Genetic programming: determinism, elitism, no work done twice, and formulas that are found again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modicum.errors import CheckpointError, OutputExists
from modicum.search import Evolution, Exhausted, Grammar, Individual, Log, Outcome, Trees, evolve
from modicum.search.evolution import child
from modicum.search.individual import Draft
from modicum.search.loop import one_by_one
from modicum.search.selection import Elitism, Tournament
from modicum.search.variation import VARIATIONS
from modicum.search.workers import crew
from modicum.symbolic import Node, Rules, Type, behaviour, evaluate, parse, symbol

SIZE = 8  # of a population
LETTERS = {"a": Type.TENSOR, "b": Type.TENSOR}
GENERATOR = torch.Generator().manual_seed(0)
KNOWN = {
    "a": torch.randn(80, generator=GENERATOR),
    "b": torch.rand(80, generator=GENERATOR) + 0.1,
}
TREES = Trees(
    Grammar(
        (symbol("a"), symbol("b")), ("sqr", "neg", "abs", "log", "exp", "sqrt", "tanh"), ("add", "sub", "mul")
    ),
    Rules(largest=15, deepest=4),
    [KNOWN],
)


def order(values: Tensor) -> Tensor:
    return (values[:, None] - values[None, :]).sign()


TARGET = order(KNOWN["a"].abs().sqrt() * KNOWN["b"])


def distance(genome: str) -> float:
    """1 - Kendall's tau to the planted formula."""
    values = evaluate(parse(genome, LETTERS), KNOWN)
    assert isinstance(values, Tensor)
    return 1 - float((order(values) * TARGET).sum()) / (80 * 79)


class Counted:
    """A trial that remembers what it tried, and can be killed."""

    def __init__(self, most: float = math.inf) -> None:
        self.genomes: list[str] = []
        self.most = most

    def __call__(self, genomes: Sequence[str], limit: float) -> Iterator[Outcome]:
        for genome in genomes:
            if len(self.genomes) >= self.most:
                raise KeyboardInterrupt
            self.genomes.append(genome)
            yield Outcome(distance(genome))


def run(
    log: Log | None = None, generations: int = 3, seed: int = 3, **more: Any
) -> tuple[list[Individual], Evolution]:
    evolution = Evolution(TREES, more.pop("size", SIZE), Random(seed), **more)
    trial = one_by_one(lambda genome, limit: Outcome(distance(genome)))
    return evolve(evolution, trial, generations, log, clock=lambda: 0.0), evolution


def drafts(history: Sequence[Individual]) -> list[Draft]:
    return [each.draft for each in history]


class TestEvolution:
    def test_the_same_seed_gives_the_same_search(self, tmp_path: Path) -> None:
        for name in ("first", "second"):
            run(Log(tmp_path / name, {"seed": 3}))
        assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
        assert drafts(run(seed=3)[0]) != drafts(run(seed=4)[0])

    def test_nothing_is_tried_twice(self) -> None:
        history, evolution = run()
        behaviours = [behaviour(each.draft.genotype, KNOWN) for each in history]
        assert len(set(behaviours)) == len(behaviours) == 4 * SIZE
        assert evolution.draws > len(history)  # duplicates came up and were drawn again

    def test_the_best_never_gets_worse_and_elites_stay(self) -> None:
        evolution = Evolution(TREES, SIZE, Random(0))
        best, elites = math.inf, []
        for _ in range(6):
            found = [Individual(draft, Outcome(distance(draft.genome))) for draft in evolution.ask()]
            evolution.tell(found)
            assert evolution.best.rank[0] <= best
            assert len(evolution.population) == SIZE
            assert all(elite in evolution.population for elite in elites)
            assert evolution.population == sorted(evolution.population, key=lambda each: each.rank)
            best, elites = evolution.best.rank[0], evolution.population[:2]

    def test_what_it_starts_from_is_never_lost(self) -> None:
        start = parse("sqrt(a) * b", LETTERS)
        history, evolution = run(generations=2, starts=[start, start])
        assert [each.draft.operator for each in history].count("start") == 1
        assert evolution.best.draft.genotype == start

    def test_invalid_candidates_rank_last_and_breed_nothing(self) -> None:
        evolution = Evolution(TREES, 10, Random(0))
        asked = evolution.ask()
        told = [Individual(draft, Outcome(None if draft.number % 2 else 1.0)) for draft in asked]
        evolution.tell(told)
        assert [each.outcome.fitness for each in evolution.population] == [1.0] * 5 + [None] * 5

    def test_a_small_space_is_exhausted(self) -> None:
        tiny = Trees(
            Grammar((symbol("a"),), ("neg",), ("add",)),
            Rules(largest=2, deepest=1),
            [KNOWN],
            shallowest=1,
            deepest=2,
        )
        history = evolve(Evolution(tiny, 5, Random(0)), Counted(), 3)
        assert {"a"} <= {each.draft.genome for each in history} <= {"a", "-a"}
        evolution = Evolution(tiny, 5, Random(0), starts=[parse("a", LETTERS), parse("-a", LETTERS)])
        evolution.tell([Individual(draft, Outcome(0.0)) for draft in evolution.ask()])
        with pytest.raises(Exhausted):
            evolution.ask()

    def test_a_planted_formula_is_found(self) -> None:
        evolution, tried = Evolution(TREES, 40, Random(1)), 0
        while not evolution.population or evolution.best.rank[0] > 1e-9:
            asked = evolution.ask()
            tried += len(asked)
            evolution.tell([Individual(draft, Outcome(distance(draft.genome))) for draft in asked])
            assert tried <= 1000
        assert evolution.best.draft.genotype.inputs == {"a", "b"}


class TestVariation:
    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 2**32), name=st.sampled_from(sorted(VARIATIONS)))
    def test_children_stay_within_the_limits_and_parents_as_they_are(self, seed: int, name: str) -> None:
        generator = Random(seed)
        first, second = (TREES.random(generator)[0] for _ in range(2))
        before = str(first), str(second)
        made = child(first, second, VARIATIONS[name], TREES, generator)
        assert made is first or TREES.fits(made)
        assert (str(first), str(second)) == before
        assert made.inputs <= {"a", "b"}
        assert parse(str(made), LETTERS) == made

    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 2**32), depth=st.integers(0, 4), least=st.integers(0, 2))
    def test_random_trees_have_the_depth_that_was_asked_for(self, seed: int, depth: int, least: int) -> None:
        def shallowest(node: Node) -> int:
            return 1 + min(map(shallowest, node.children)) if node.children else 0

        full = TREES.grammar.tree(Random(seed), depth, full=True)
        grown = TREES.grammar.tree(Random(seed), depth, full=False, least=least)
        assert full.depth == shallowest(full) == depth
        assert min(least, depth) <= shallowest(grown) <= grown.depth <= depth

    def test_point_keeps_the_shape_and_hoist_shrinks(self) -> None:
        parent = parse("sqrt(a) * (b + exp(a))", LETTERS)
        for seed in range(30):
            pointed = VARIATIONS["point"].make(parent, parent, TREES, Random(seed))
            assert [path for path, _ in pointed.walk()] == [path for path, _ in parent.walk()]
            hoisted = VARIATIONS["hoist"].make(parent, parent, TREES, Random(seed))
            assert hoisted.size <= parent.size
            assert set(map(str, (node for _, node in hoisted.walk()))) & set(
                map(str, (n for _, n in parent.walk()))
            )

    def test_inputs_are_bit_identical_after_many_expressions(self) -> None:
        known = {name: values.clone() for name, values in KNOWN.items()}
        generator = Random(0)
        for _ in range(1000):
            evaluate(TREES.random(generator)[0], known)
        assert all(torch.equal(known[name], KNOWN[name]) for name in known)


class TestSelection:
    @staticmethod
    def individuals(*fitness: float | None, first: int = 0) -> list[Individual]:
        node = symbol("a")
        return [
            Individual(Draft(first + i, 0, node, "grow", (), "", 1), Outcome(value))
            for i, value in enumerate(fitness)
        ]

    def test_a_tournament_of_all_is_won_by_the_best(self) -> None:
        population = self.individuals(3.0, 1.0, None, 2.0)
        assert Tournament(9)(population, Random(0)) is population[1]
        assert {Tournament(1)(population, Random(seed)).draft.number for seed in range(40)} == {0, 1, 2, 3}

    def test_elites_stay_and_children_fill_up(self) -> None:
        old, young = self.individuals(1.0, 2.0, 3.0), self.individuals(5.0, 1.5, None, first=3)
        kept = [each.draft.number for each in Elitism(1)(old, young, 3)]
        assert kept == [0, 4, 3]
        assert [each.draft.number for each in Elitism(1)(old, young[:1], 3)] == [0, 1, 3]


class TestLog:
    @pytest.mark.parametrize("stop", [1, 8, 19])
    def test_a_killed_search_ends_where_it_would_have_ended(self, stop: int, tmp_path: Path) -> None:
        expected, whole = run(Log(tmp_path / "whole", {}))
        with pytest.raises(KeyboardInterrupt):
            evolve(
                Evolution(TREES, SIZE, Random(3)),
                Counted(stop),
                3,
                Log(tmp_path / "log", {}),
                clock=lambda: 0.0,
            )
        with (tmp_path / "log").open("a") as stream:
            stream.write('{"number": 1, "gen')  # what a kill leaves
        again, evolution = Counted(), Evolution(TREES, SIZE, Random(3))
        log = Log(tmp_path / "log", {})
        assert evolve(evolution, again, 3, log, clock=lambda: 0.0) == expected
        assert len(again.genomes) == len(expected) - stop
        assert evolution.population == whole.population
        assert (tmp_path / "log").read_bytes() == (tmp_path / "whole").read_bytes()

    def test_more_generations_go_on(self, tmp_path: Path) -> None:
        expected, _ = run()
        run(Log(tmp_path / "log", {}), generations=1)
        again = Counted()
        evolution, log = Evolution(TREES, SIZE, Random(3)), Log(tmp_path / "log", {})
        assert evolve(evolution, again, 3, log, clock=lambda: 0.0) == expected
        assert len(again.genomes) == 2 * SIZE

    def test_the_number_of_workers_changes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(Path(__file__).parent)  # where the workers look as well
        maker, found = import_module("fitness_by_length").maker, []
        for workers in (1, 2):
            with crew(maker, workers) as trial:
                found.append(evolve(Evolution(TREES, SIZE, Random(3)), trial, 2, clock=lambda: 0.0))
        assert found[0] == found[1]

    def test_seconds_of_a_generation_go_on_after_a_stop(self, tmp_path: Path) -> None:
        ticks = iter(range(1000))
        with pytest.raises(KeyboardInterrupt):
            evolve(
                Evolution(TREES, SIZE, Random(3)),
                Counted(5),
                1,
                Log(tmp_path / "log", {}),
                clock=ticks.__next__,
            )
        evolution, log = Evolution(TREES, SIZE, Random(3)), Log(tmp_path / "log", {})
        history = evolve(evolution, Counted(), 1, log, clock=ticks.__next__)
        first, second = history[:SIZE], history[SIZE:]
        assert (
            [each.elapsed for each in first] == [each.elapsed for each in second] == list(range(1, SIZE + 1))
        )

    def test_the_log_says_everything(self, tmp_path: Path) -> None:
        history, _ = run(Log(tmp_path / "log", {"what": "test"}))
        header, *lines = map(json.loads, (tmp_path / "log").read_text().splitlines())
        assert header == {"version": 2, "what": "test"}
        assert [line["number"] for line in lines] == list(range(len(history)))
        for line in lines:
            assert line["fitness"] == pytest.approx(distance(line["genome"]))
            assert all(parent < line["number"] for parent in line["parents"])
            assert len(line["parents"]) == (
                2 if line["operator"] == "cross" else line["operator"] in VARIATIONS
            )

    def test_the_log_of_another_search_is_refused(self, tmp_path: Path) -> None:
        Log(tmp_path / "log", {"seed": 1})
        with pytest.raises(OutputExists, match="seed 1, not 2"):
            Log(tmp_path / "log", {"seed": 2})

    @pytest.mark.parametrize(
        "damage",
        [
            lambda lines: [lines[0], "{nonsense", *lines[2:]],
            lambda lines: [lines[0], "[1, 2]", *lines[2:]],
            lambda lines: [lines[0], *lines[2:]],
            lambda lines: [lines[0], lines[1].replace('"fitness"', '"other"'), *lines[2:]],
        ],
    )
    def test_a_damaged_log_is_refused(self, damage: Callable[[list[str]], list[str]], tmp_path: Path) -> None:
        run(Log(tmp_path / "log", {}), generations=0)
        lines = (tmp_path / "log").read_text().splitlines()
        (tmp_path / "log").write_text("\n".join(damage(lines)) + "\n")
        with pytest.raises(CheckpointError, match="Line 2"):
            run(Log(tmp_path / "log", {}), generations=0)
