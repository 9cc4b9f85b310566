"""Recipes: what is written is read back the same, and whatever else is read ends in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from modicum.errors import InvalidSetting, ModicumError, UnknownName
from modicum.method import build, registry
from modicum.pipeline.recipe import Calibration, Recipe, load, parse, parse_text
from modicum.prune.wanda import Wanda
from modicum.quantize.gptq import GPTQ

# texts that some version of YAML takes for something else
TRICKY = st.sampled_from(
    ["2:4", "1e5", "1.5", "0o7", "010", "yes", "null", "~", ".inf", "1:2:3", "2020-01-01", ""]
)
NAMES = st.lists(TRICKY | st.text(max_size=8), max_size=3).map(tuple)
SPARSE = {
    "sparsity": st.floats(0, 1, exclude_max=True),
    "pattern": st.sampled_from([None, "2:4", "1:2", "4:8", "7:59"]),
}
GRID = {
    "bits": st.integers(2, 8),
    "group_size": st.integers(1, 2**20) | st.just(-1),
    "symmetric": st.booleans(),
}
SETTINGS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "prune.magnitude": {**SPARSE, "scope": st.sampled_from(["matrix", "row"])},
    "prune.wanda": SPARSE,
    "prune.sparsegpt": {
        **SPARSE,
        "damp": st.floats(0, 1, exclude_min=True),
        "block_size": st.integers(1, 2**40),
    },
    "quantize.rtn": {**GRID, "clip_search": st.booleans()},
    "quantize.gptq": {**GRID, "damp": st.floats(0, 1, exclude_min=True), "act_order": st.booleans()},
    "quantize.awq": {
        **GRID,
        "ratios": st.integers(1, 100),
        "duo_scaling": st.booleans(),
        "clip": st.booleans(),
    },
}


def some_step(name: str) -> st.SearchStrategy[Any]:
    fields = {**SETTINGS[name], "only": NAMES, "skip": NAMES}
    return st.fixed_dictionaries({}, optional=fields).map(lambda chosen: build(name, chosen))


RECIPES = st.builds(
    Recipe,
    steps=st.lists(st.sampled_from(sorted(SETTINGS)).flatmap(some_step), min_size=1, max_size=3).map(tuple),
    calibration=st.builds(
        Calibration,
        source=TRICKY | st.text(max_size=20),
        samples=st.integers(1, 2**40),
        length=st.integers(2, 2**40),
    ),
    seed=st.integers(0, 2**63 - 1),
)


@settings(deadline=None, max_examples=150)
@given(recipe=RECIPES)
def test_written_and_read_is_the_same_recipe(recipe: Recipe) -> None:
    assert parse(recipe.to_dict()) == recipe
    assert parse_text(recipe.to_yaml()) == recipe
    assert parse(yaml.safe_load(recipe.to_yaml())) == recipe  # other readers of YAML see the same
    assert parse_text(yaml.safe_dump(recipe.to_dict())) == recipe


ONE_STEP = {"steps": ["prune.wanda"]}


def outcome(read: Callable[[Any], Recipe], value: Any) -> str:
    """What a user gets to see: the recipe, or the sentence that refuses it. Any other exception passes through."""
    try:
        return read(value).to_yaml()
    except ModicumError as refusal:
        return refusal.what


WORDS = [
    *registry(),
    *Recipe.model_fields,
    *Calibration.model_fields,
    *Wanda.model_fields,
    *GPTQ.model_fields,
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.binary(max_size=4)
    | st.dates()
    | st.sampled_from(WORDS)
)
STRUCTURES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(SCALARS, inner, max_size=4)
        | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(value=STRUCTURES)
def test_no_structure_gets_past_the_sentences(value: Any) -> None:
    for attempt in (value, {"steps": value}, [value], [{"prune.wanda": value}], {**ONE_STEP, "seed": value}):
        assert 0 < len(outcome(parse, attempt)) < 3000


SNIPPETS = st.lists(
    st.sampled_from(
        [*WORDS, *"[]{}:,-&*!|>%@`'\"#\n\t 0123456789.~", ": ", "- ", "\n  ", "!!", "&a", "*a", "<<: "]
    ),
    max_size=30,
).map("".join)
TAGS = st.sampled_from(
    ["int", "float", "bool", "null", "timestamp", "binary", "set", "omap", "pairs", "str", "x"]
)


@settings(deadline=None, max_examples=300)
@given(text=st.text(max_size=60) | SNIPPETS | st.binary(max_size=60))
def test_no_text_gets_past_the_sentences(text: Any) -> None:
    assert outcome(parse_text, text)


@settings(deadline=None, max_examples=150)
@given(
    tag=TAGS, value=st.text(max_size=6) | st.sampled_from(["", "x", "0x", "1:2", "[a]", "{a: b}", "[[a]]"])
)
def test_no_tag_gets_past_the_sentences(tag: str, value: str) -> None:
    for text in (
        f"!!{tag} {value}",
        f"steps: [quantize.rtn: {{bits: !!{tag} {value}}}]",
        f"seed: !!{tag} '{value}'",
    ):
        assert outcome(parse_text, text)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "{a: " * 3000,
        "&a [*a]",
        "steps: &a [*a]",
        "steps: [quantize.rtn: {bits: " + "9" * 5000 + "}]",
        "seed: " + "9" * 5000 + "\nsteps: [quantize.rtn]",
        "seed: 2020-13-45\nsteps: [quantize.rtn]",
        "!!python/object/apply:os.system [true]",
        "steps: [quantize.rtn: {bits: 0x4}]",
    ],
)
def test_hostile_texts_are_refused(text: str) -> None:
    with pytest.raises(ModicumError) as refusal:
        parse_text(text)
    assert len(str(refusal.value)) < 1000


@pytest.mark.parametrize("written", ["2:4", "'2:4'", '"2:4"'])
def test_a_pattern_needs_no_quotes(written: str) -> None:
    assert parse_text(f"steps: [prune.wanda: {{pattern: {written}}}]") == Recipe.of(Wanda(pattern="2:4"))


@pytest.mark.parametrize(
    ("written", "sparsity"),
    [("0.5", 0.5), (".5", 0.5), ("5e-1", 0.5), ("5.E-1", 0.5), ("0", 0.0), ("0.", 0.0)],
)
def test_numbers_are_read_as_people_write_them(written: str, sparsity: float) -> None:
    assert parse_text(f"steps: [prune.wanda: {{sparsity: {written}}}]") == Recipe.of(Wanda(sparsity=sparsity))


@pytest.mark.parametrize(
    "text",
    [
        "[prune.wanda, {quantize.gptq: {bits: 3}}]",
        "- prune.wanda\n- quantize.gptq: {bits: 3}",
        "steps: [prune.wanda, quantize.gptq: {bits: 3}]",
        "steps:\n  - prune.wanda:\n  - quantize.gptq:\n      bits: 3\ncalibration:\n",
        '{"steps": ["prune.wanda", {"quantize.gptq": {"bits": 3}}], "seed": 0}',
    ],
)
def test_one_recipe_in_many_spellings(text: str) -> None:
    assert parse_text(text) == Recipe.of(Wanda(), GPTQ(bits=3))


def test_only_what_differs_from_the_defaults_is_written() -> None:
    text = Recipe.of(Wanda(), GPTQ(bits=3)).to_yaml()
    assert "prune.wanda\n" in text
    assert "quantize.gptq: {bits: 3}" in text


@pytest.mark.parametrize(
    ("text", "wrong", "near"),
    [
        ("[prune.wamda]", "no method named 'prune.wamda'", "'prune.wanda'"),
        ("[{quantize.gtpq: {bits: 3}}]", "no method named 'quantize.gtpq'", "'quantize.gptq'"),
        ("[{prune.wanda: {sparcity: 0.5}}]", "no setting of prune.wanda named 'sparcity'", "'sparsity'"),
        ("{step: [prune.wanda]}", "no recipe key named 'step'", "'steps'"),
        ("{steps: [prune.wanda], calibraton: {}}", "no recipe key named 'calibraton'", "'calibration'"),
    ],
)
def test_a_wrong_name_brings_the_nearest(text: str, wrong: str, near: str) -> None:
    with pytest.raises(UnknownName) as refusal:
        parse_text(text)
    assert wrong in refusal.value.what
    assert near in refusal.value.hint


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[{prune.wanda: {sparsity: 1}}]", r"prune\.wanda: sparsity: .*less than 1 \(given: 1\)"),
        ("[{prune.wanda: {sparsity: .nan}}]", r"prune\.wanda: sparsity: .*\(given: nan\)"),
        ("[{prune.wanda: {sparsity: -0.1}}]", r"sparsity: .*greater than or equal to 0"),
        ("[{quantize.rtn: {bits: 9}}]", r"quantize\.rtn: bits: .*less than or equal to 8 \(given: 9\)"),
        ("[{quantize.rtn: {bits: four}}]", r"bits: .*valid integer.*\(given: 'four'\)"),
        ("[{quantize.rtn: {bits: 4.5}}]", r"bits: .*\(given: 4\.5\)"),
        ("[{quantize.rtn: {group_size: 0}}]", r"group_size: must be positive, or -1"),
        ("[{prune.wanda: {pattern: 4:2}}]", r"pattern: must look like 2:4"),
        ("[{prune.wanda: 0.5}]", r"prune\.wanda: settings must be a mapping \(given: 0\.5\)"),
        ("[[prune.wanda]]", r"is not a step"),
        ("[{prune.wanda: {}, quantize.rtn: {}}]", r"is not a step"),
        ("{steps: [prune.wanda], calibration: {samples: 0}}", r"samples: .*greater than or equal to 1"),
        ("{steps: [prune.wanda], calibration: {sample: 9}}", r"sample: "),
        ("{steps: [prune.wanda], calibration: 9}", r"calibration: settings must be a mapping"),
        ("{steps: [prune.wanda], seed: -1}", r"seed: .*greater than or equal to 0"),
        ("{steps: [prune.wanda], seed: x}", r"seed: .*valid integer"),
        ("{steps: prune.wanda}", "holds no steps"),
        ("{steps: []}", "holds no steps"),
        ("{}", "holds no steps"),
        ("", "holds no steps"),
        ("prune.wanda", "holds no steps"),
        ("steps: [", "not valid YAML"),
    ],
)
def test_what_is_out_of_range_is_named(text: str, wrong: str) -> None:
    with pytest.raises(InvalidSetting, match=wrong):
        parse_text(text)


def test_a_file_is_named_in_the_complaint(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    with pytest.raises(InvalidSetting, match=r"mine\.yaml cannot be read"):
        load(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidSetting, match=r"mine\.yaml"):
        load(file)
    file.write_text("[prune.wand]")
    with pytest.raises(UnknownName, match=r"mine\.yaml: There is no method named 'prune\.wand'"):
        load(file)
    file.write_text(Recipe.of(Wanda(pattern="2:4"), seed=3, samples=7).to_yaml())
    assert load(file) == Recipe.of(Wanda(pattern="2:4"), seed=3, samples=7)
