"""How many groups go, and how candidates of one size are drawn and bred."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modicum.allocate.evolution import Evolution, Log
from modicum.allocate.width import even, lowest, lowest_of_each, parameters
from modicum.allocate.width_space import Candidate, WidthSpace, key, most_important, resized, swapped
from modicum.errors import InvalidSetting
from modicum.models import Anatomy
from modicum.models.surgery import Cuttable, cuttable


@pytest.fixture(scope="module")
def units(toolbox: Any) -> list[Cuttable]:
    return cuttable(Anatomy.of(toolbox.build("llama")))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gone(kept: dict[Cuttable, Tensor]) -> int:
    return sum((unit.count - len(groups)) * unit.size for unit, groups in kept.items())


@settings(deadline=None, max_examples=20)
@given(ratio=st.floats(0, 0.6), seed=st.integers(0, 99))
def test_the_budget_is_met_from_below(ratio: float, seed: int, units: list[Cuttable]) -> None:
    budget = ratio * parameters(units)
    scores = {unit: torch.rand(unit.count, generator=generator(seed)) for unit in units}
    smallest = min(unit.size for unit in units)
    for kept, slack in (
        (lowest(scores, budget), smallest),
        (lowest_of_each(scores, even(units, budget)), 3 * smallest),
    ):
        assert budget - slack <= gone(kept) <= budget + 1
        assert all(len(groups) >= 1 for groups in kept.values())
        assert all(torch.equal(groups, groups.unique()) for groups in kept.values())


def test_the_lowest_go(units: list[Cuttable]) -> None:
    scores = {
        unit: torch.rand(unit.count, generator=generator(unit.block))
        for unit in units
        if unit.kind == "neurons"
    }
    size = next(iter(scores)).size
    kept = lowest(scores, 30 * size)
    threshold = torch.cat(list(scores.values())).sort().values[30]
    for unit, score in scores.items():
        assert torch.equal(kept[unit], (score >= threshold).nonzero()[:, 0])


def test_every_unit_keeps_its_highest(units: list[Cuttable]) -> None:
    scores = {unit: torch.rand(unit.count) - (9 if unit.block == 1 else 0) for unit in units}
    kept = lowest(scores, parameters([unit for unit in units if unit.block == 1]))
    for unit in (unit for unit in units if unit.block == 1):
        assert kept[unit].tolist() == [int(scores[unit].argmax())]


def test_every_block_gives_the_same_share(units: list[Cuttable]) -> None:
    shares = even(units, 0.3 * parameters(units))
    for block in range(3):
        own = [unit for unit in units if unit.block == block]
        lost = sum(shares[unit] * unit.size for unit in own)
        assert lost == pytest.approx(0.3 * parameters(own), abs=own[1].size)


def test_too_much(units: list[Cuttable]) -> None:
    with pytest.raises(InvalidSetting, match="more than it can lose"):
        even(units, 0.999 * parameters(units))
    with pytest.raises(InvalidSetting, match="cannot go"):
        lowest({unit: torch.rand(unit.count) for unit in units}, 0.999 * parameters(units))


def space(units: list[Cuttable], ratio: float = 0.3) -> WidthSpace:
    importance = [torch.rand(unit.count, generator=generator(i)) for i, unit in enumerate(units)]
    return WidthSpace(units, importance, [1] * len(units), (1 - ratio) * parameters(units), tolerance=0.02)


@settings(deadline=None, max_examples=15)
@given(ratio=st.floats(0.25, 0.5), seed=st.integers(0, 999))
def test_what_is_bred_has_the_size(ratio: float, seed: int, units: list[Cuttable]) -> None:
    place, chance = space(units, ratio), generator(seed)
    one, other = place.random(chance), place.random(chance)
    begun = place.sized([unit.count for unit in units])
    for candidate in (one, other, begun, place.mutated(one, chance), place.crossed(one, other, chance)):
        assert place.legal(candidate)
        kept = sum(int(mask.sum()) * unit.size for mask, unit in zip(candidate, units, strict=True))
        assert 0.98 * place.size <= kept <= place.size


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 50), st.data())
def test_masks(groups: int, data: st.DataObject) -> None:
    importance = torch.rand(groups, generator=generator(groups))
    mask = most_important(importance, data.draw(st.integers(1, groups)))
    count = data.draw(st.integers(1, groups))
    changed = resized(mask, count, importance)
    assert int(changed.sum()) == count
    assert torch.equal(changed, most_important(importance, count))  # so far all masks follow importance
    assert int((changed & mask).sum()) == min(count, int(mask.sum()))
    mutated = swapped(mask, 0.1, 0.8, generator())
    assert mutated.sum() == mask.sum()
    assert int((mutated & mask).sum()) >= 0.8 * int(mask.sum())


def test_a_mask_with_room_is_mutated() -> None:
    mask = torch.arange(100) < 50
    changed = swapped(mask, 0.1, 0.8, generator())
    assert int((changed & mask).sum()) == 45
    assert key((changed,)) != key((mask,)) == key((mask.clone(),))
    assert key((torch.tensor([True]), torch.tensor([False]))) != key((torch.tensor([True, False]),))


class Cost:
    """The loss of a candidate: how far its masks are from a hidden one. Counts how often it is asked."""

    def __init__(self, units: list[Cuttable]) -> None:
        self.hidden = space(units).random(generator(77))
        self.asked: list[str] = []

    def __call__(self, candidate: Candidate) -> float:
        self.asked.append(key(candidate))
        return float(sum((a ^ b).sum() for a, b in zip(candidate, self.hidden, strict=True)))


EVOLUTION = Evolution(generations=4, population=16, top=6, mutations=8, crossovers=4)


class TestEvolution:
    def test_the_best_never_gets_worse(self, units: list[Cuttable]) -> None:
        heard: list[float] = []
        cost = Cost(units)
        best = EVOLUTION.run(space(units), cost, generator(), told=lambda _, loss: heard.append(loss))
        assert heard == sorted(heard, reverse=True)
        assert heard[-1] < heard[0]
        assert heard[-1] == best[0].loss == min(each.loss for each in best)
        assert len(best) == EVOLUTION.top
        assert all(space(units).legal(each.candidate) for each in best)

    def test_no_candidate_is_evaluated_twice(self, units: list[Cuttable]) -> None:
        cost = Cost(units)
        EVOLUTION.run(space(units), cost, generator())
        assert len(set(cost.asked)) == len(cost.asked) > 60

    def test_the_same_seed_finds_the_same(self, units: list[Cuttable]) -> None:
        runs = [EVOLUTION.run(space(units), Cost(units), generator(seed)) for seed in (5, 5, 6)]
        names = [[key(each.candidate) for each in found] for found in runs]
        assert names[0] == names[1] != names[2]

    def test_what_one_begins_with_is_never_lost(self, units: list[Cuttable]) -> None:
        cost = Cost(units)
        best = EVOLUTION.run(space(units), cost, generator(), [cost.hidden])
        assert best[0].loss == 0
        illegal = tuple(torch.ones_like(mask) for mask in cost.hidden)
        EVOLUTION.run(space(units), cost, generator(), [illegal])
        assert key(illegal) not in cost.asked

    def test_a_size_that_nothing_has(self, units: list[Cuttable]) -> None:
        heads = [unit for unit in units if unit.kind == "heads"]
        with pytest.raises(InvalidSetting, match="has the size"):
            EVOLUTION.run(space(heads, 0.4), lambda _: 0.0, generator())


class TestLog:
    def test_a_killed_search_goes_on(self, units: list[Cuttable], tmp_path: Path) -> None:
        file = tmp_path / "work" / "log.jsonl"
        whole = EVOLUTION.run(space(units), Cost(units), generator())

        class Killed(Cost):
            def __call__(self, candidate: Candidate) -> float:
                if len(self.asked) == 40:
                    raise KeyboardInterrupt
                return super().__call__(candidate)

        with pytest.raises(KeyboardInterrupt):
            EVOLUTION.run(space(units), Log(Killed(units), file, {"of": 1}), generator())
        with file.open("a") as stream:
            stream.write('{"key": "half')
        rest = Cost(units)
        again = EVOLUTION.run(space(units), Log(rest, file, {"of": 1}), generator())
        assert [key(a.candidate) for a in again] == [key(b.candidate) for b in whole]
        full = Cost(units)
        EVOLUTION.run(space(units), full, generator())
        assert len(rest.asked) == len(full.asked) - 40

    def test_another_search_begins_anew(self, units: list[Cuttable], tmp_path: Path) -> None:
        file = tmp_path / "log.jsonl"
        candidate = space(units).random(generator())
        assert Log(lambda _: 1.0, file, {"of": 1})(candidate) == 1.0
        assert Log(lambda _: 2.0, file, {"of": 1})(candidate) == 1.0
        assert Log(lambda _: 2.0, file, {"of": 2})(candidate) == 2.0
        assert json.loads(file.read_text().splitlines()[0]) == {"of": 2}
