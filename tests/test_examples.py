"""What the repository shows a newcomer is true: example recipes can be planned, the README lists every method."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
from typer.main import get_command

from modicum import api
from modicum.cli.app import app
from modicum.method import registry

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^(?:\$ )?modicum (.*)$", re.MULTILINE)


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_on_pages_have_their_options(page: Path) -> None:
    for block in re.findall(r"^```(?:sh|console)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in COMMAND.findall(block.replace("\\\n", " ")):
            words = shlex.split(line.split(" | ")[0], comments=True)
            command = get_command(app)
            while words and words[0] in getattr(command, "commands", {}):
                command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
            assert not hasattr(command, "commands") or not words or words[0].startswith("-"), line
            known = {"--help", "-h"}.union(*([*o.opts, *o.secondary_opts] for o in command.params))
            asked = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
            assert asked <= known, line


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_pixelgen_shows_what_its_commands_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = generator()
    assert "docs/pixelgen.md" in generate.PAGES
    monkeypatch.setattr(generate, "ROOT", tmp_path)  # a copy is filled in
    page = tmp_path / "pixelgen.md"
    page.write_text((ROOT / "docs/pixelgen.md").read_text())
    assert "```console" in page.read_text()
    generate.rerun(page)
    assert page.read_text() == (ROOT / "docs/pixelgen.md").read_text()
