"""What the repository shows a newcomer is true: example recipes can be planned, the README lists every method."""

from __future__ import annotations

from pathlib import Path

import pytest

from modicum import api
from modicum.method import registry

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_there_are_example_recipes() -> None:
    assert RECIPES


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_example_recipe_can_be_planned(file: Path) -> None:
    plan = api.plan("nano-lm", file)
    assert plan.layers
    assert plan.weights_after <= plan.weights_before


def test_the_readme_lists_every_method_once() -> None:
    text = (ROOT / "README.md").read_text()
    listed = text.split("<!-- methods", 1)[1].split("<!-- /methods -->", 1)[0]
    found = [line.split("`")[1] for line in listed.splitlines() if line.startswith("| [`")]
    assert found == list(registry())
