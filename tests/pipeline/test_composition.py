"""Which steps may follow each other: derived from what each one needs, keeps and gives, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modicum import method as methods
from modicum.errors import InvalidSetting, RecipeConflict
from modicum.method import Method, Paper, build, registry
from modicum.pipeline.composition import LONGEST_REORDERED, live_properties
from modicum.pipeline.plan import make_plan
from modicum.pipeline.recipe import Recipe, parse
from modicum.pipeline.source import Source
from modicum.prune.magnitude import Magnitude
from modicum.prune.sparsegpt import SparseGPT
from modicum.prune.wanda import Wanda
from modicum.quantize.awq import AWQ
from modicum.quantize.gptq import GPTQ
from modicum.quantize.rtn import RTN
from modicum.weights.properties import (
    IntegerGrid,
    LayerShapes,
    NMPattern,
    Property,
    TiedWeights,
    ZeroMask,
)

PROPERTIES: list[Property] = [ZeroMask(), NMPattern(2, 4), IntegerGrid(4, 128), TiedWeights(), LayerShapes()]


class Step:
    """Something with needs, keeps and gives; not a registered method."""

    def __init__(self, name: str, needs: Any, keeps: Any, gives: Any) -> None:
        self.name, self.needs, self.keeps, self._gives = name, tuple(needs), tuple(keeps), tuple(gives)

    def gives(self) -> tuple[Property, ...]:
        return self._gives


def subsets(values: Sequence[Any], most: int = 5) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(values), max_size=most, unique=True)


KINDS = [type(held) for held in PROPERTIES]
STEPS = st.builds(Step, st.sampled_from("abcdef"), subsets(KINDS, 1), subsets(KINDS), subsets(PROPERTIES, 2))


def allowed(steps: Sequence[Any], start: Sequence[Property] = ()) -> bool:
    """The rule once more, as plainly as it can be said."""
    live = set(start)
    for step in steps:
        if any(not any(isinstance(held, need) for held in live) for need in step.needs):
            return False
        if any(not isinstance(held, step.keeps) for held in live):
            return False
        live |= set(step.gives())
    return True


def outcome(
    steps: Sequence[Any], start: Sequence[Property] = ()
) -> list[frozenset[Property]] | RecipeConflict:
    try:
        return live_properties(steps, start)
    except RecipeConflict as refusal:
        return refusal


@settings(deadline=None, max_examples=200)
@given(steps=st.lists(STEPS, max_size=5), start=subsets(PROPERTIES, 2))
def test_nothing_is_promised_that_a_later_step_breaks(steps: list[Any], start: list[Property]) -> None:
    live = outcome(steps, start)
    assert isinstance(live, RecipeConflict) is not allowed(steps, start)
    if isinstance(live, RecipeConflict):
        orders = [[step.name for step in order] for order in permutations(steps) if allowed(order, start)]
        suggested = re.search(r"This order works: (.*)\.$", live.hint)
        assert bool(suggested) is bool(orders)
        assert not suggested or suggested[1].split(" then ") in orders
        return
    assert len(live) == len(steps)
    for position, held in enumerate(live):
        assert set(start) <= held
        assert held >= frozenset(steps[position].gives())
        for later in steps[position + 1 :]:
            assert all(isinstance(one, later.keeps) for one in held)


@settings(deadline=None, max_examples=100)
@given(names=st.lists(st.sampled_from(sorted(registry())), max_size=4))
def test_the_methods_themselves_follow_the_rule(names: list[str]) -> None:
    steps = [build(name, {}) for name in names]
    live = outcome(steps)
    assert isinstance(live, RecipeConflict) is not allowed(steps)
    if isinstance(live, list) and live:
        assert live[-1] == {given for step in steps for given in step.gives()}


def test_quantize_then_prune_is_refused_and_turned_around() -> None:
    with pytest.raises(RecipeConflict) as refusal:
        live_properties([GPTQ(), Wanda()])
    assert refusal.value.what == "quantize.gptq leaves a 4-bit integer grid, which prune.wanda would break."
    assert refusal.value.hint == "This order works: prune.wanda then quantize.gptq."


@pytest.mark.parametrize("prune", [Magnitude(), Wanda(), SparseGPT(), Wanda(pattern="2:4")])
@pytest.mark.parametrize("quantize", [RTN(), GPTQ(), AWQ()])
def test_prune_then_quantize_keeps_the_zeros(prune: Any, quantize: Any) -> None:
    after = live_properties([prune, quantize])
    assert after[0] == frozenset(prune.gives())
    assert after[1] == frozenset(prune.gives()) | {IntegerGrid(4, 128)}


def test_pruning_can_be_repeated() -> None:
    steps = [Wanda(pattern="2:4"), SparseGPT(sparsity=0.5), Magnitude(sparsity=0.8)]
    assert live_properties(steps)[-1] == {ZeroMask(), NMPattern(2, 4)}


@pytest.mark.parametrize("second", [RTN(bits=8), RTN(bits=4), GPTQ(bits=3)])
def test_one_matrix_takes_one_grid(second: Method) -> None:
    with pytest.raises(RecipeConflict, match="leaves a 4-bit integer grid") as refusal:
        live_properties([RTN(bits=4), second])
    assert refusal.value.hint == "No order of these steps works; leave one out."


def test_what_the_model_brings_counts() -> None:
    with pytest.raises(RecipeConflict, match=r"^the model leaves a 3-bit integer grid, which prune\.wanda"):
        live_properties([Wanda()], [IntegerGrid(3)])
    assert live_properties([GPTQ()], [ZeroMask()])[0] == {ZeroMask(), IntegerGrid(4, 128)}


def test_nothing_is_searched_for_in_a_long_recipe() -> None:
    steps = [RTN(), *[Wanda()] * LONGEST_REORDERED]
    with pytest.raises(RecipeConflict, match="leave one out"):
        live_properties(steps)


@pytest.mark.parametrize(
    ("need", "words"),
    [
        (ZeroMask, "zero mask"),
        (NMPattern, "NM pattern"),
        (IntegerGrid, "integer grid"),
        (TiedWeights, "tied weights"),
    ],
)
def test_an_unmet_need_is_named_in_words(monkeypatch: pytest.MonkeyPatch, need: Any, words: str) -> None:
    monkeypatch.setattr(methods, "_REGISTRY", dict(methods._REGISTRY))

    class Toy(Method):
        """Needs what somebody else has to give."""

        paper: ClassVar[Paper] = Paper("Toy", "baseline")
        needs = (need,)
        keeps = (ZeroMask, NMPattern)

    with pytest.raises(RecipeConflict) as refusal:
        live_properties([Toy()])
    assert refusal.value.what == f"{Toy.name} needs the property '{words}', which no step before it gives."
    if need is ZeroMask:
        assert live_properties([Wanda(), Toy()])[-1] == {ZeroMask()}
        with pytest.raises(
            RecipeConflict, match=rf"This order works: prune\.wanda then {re.escape(Toy.name)}\."
        ):
            live_properties([Toy(), Wanda()])


def test_the_toy_is_gone() -> None:
    assert not any("test_composition" in name for name in registry())


def plan_of(directory: Path, *steps: Any) -> Any:
    return make_plan(Source.open(directory), parse(list(steps)), samples=(2, 16))


def test_different_layers_may_have_different_grids(tiny_llama: Path) -> None:
    attention, rest = ["q", "k", "v", "o"], ["gate", "up", "down"]
    plan = plan_of(
        tiny_llama,
        {"quantize.rtn": {"bits": 8, "only": attention}},
        {"quantize.gptq": {"bits": 3, "only": rest}},
    )
    for layer in plan.layers:
        bits = 8 if layer.role in attention else 3
        assert plan.live[layer.name] == [frozenset(), frozenset({IntegerGrid(bits, 128)})]
    assert len(plan.layers) == 3 * 7


def test_an_overlap_of_two_grids_is_refused_before_anything_is_read(tiny_llama: Path) -> None:
    with pytest.raises(RecipeConflict, match="4-bit integer grid"):
        plan_of(tiny_llama, "quantize.rtn", {"quantize.rtn": {"bits": 8, "only": ["down"]}})
    with pytest.raises(RecipeConflict, match=r"prune\.wanda then quantize\.rtn"):
        plan_of(tiny_llama, {"quantize.rtn": {"only": ["up"]}}, {"prune.wanda": {"skip": ["q"]}})
    plan_of(tiny_llama, {"quantize.rtn": {"only": ["up"]}}, {"prune.wanda": {"skip": ["up"]}})


def test_a_pattern_that_does_not_fit_is_refused_at_planning(tiny_llama: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"96 inputs, which do not divide into groups of 7|64 inputs"):
        plan_of(tiny_llama, {"prune.wanda": {"pattern": "3:7"}})


def test_a_recipe_of_methods_is_the_recipe_of_their_names() -> None:
    assert Recipe.of(Wanda(), GPTQ(bits=3)) == parse(["prune.wanda", {"quantize.gptq": {"bits": 3}}])
