"""Policies on the command line: saved by a recipe, used by generate and report, and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modicum.cli.app import app
from modicum.cli.failures import explain
from modicum.formats.policies import FILE


@pytest.fixture(scope="module")
def cached(tiny_dit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the blocks, and a step cache, by a recipe file."""
    folder = tmp_path_factory.mktemp("cached")
    recipe = folder / "recipe.yaml"
    recipe.write_text("steps:\n- prune.blocks: {keep: [0, 3]}\n- diffusion.fora: {interval: 2}\n")
    line = ["compress", str(tiny_dit), "--recipe", str(recipe), "--out", str(folder / "small"), "--quiet"]
    assert explain(app, line) == 0
    return folder / "small"


def test_compress_says_what_is_saved(terminal: Any, tiny_dit: Path, tmp_path: Path) -> None:
    line = ["compress", tiny_dit, "--method", "diffusion.taylorseer", "--set", "order=1"]
    assert "diffusion.taylorseer order=1 is saved beside" in terminal(*line, "--out", tmp_path / "a")
    found = terminal.json(*line, "--out", tmp_path / "b")
    assert found["policies"] == ["diffusion.taylorseer order=1"]


def test_generate_uses_what_is_saved(terminal: Any, cached: Path, tmp_path: Path) -> None:
    line = ["generate", cached, "--label", 3, "--steps", 4, "--overwrite"]
    assert "under diffusion.fora interval=2, saved in" in terminal(*line, "--out", tmp_path / "a.png")
    saved = terminal.json(*line, "--out", tmp_path / "a.png")
    assert (saved["policies"], saved["policies_saved"]) == (["diffusion.fora interval=2"], True)
    plain = terminal.json(*line, "--no-policy", "--out", tmp_path / "plain.png")
    assert (plain["policies"], plain["policies_saved"]) == ([], False)
    named = terminal.json(
        *line, "--step-cache", "fora", "--set", "interval=2", "--out", tmp_path / "named.png"
    )
    assert (named["policies"], named["policies_saved"]) == (["diffusion.fora interval=2"], False)
    a, named_bytes = (tmp_path / "a.png").read_bytes(), (tmp_path / "named.png").read_bytes()
    assert a == named_bytes
    assert a != (tmp_path / "plain.png").read_bytes()


def test_caches_of_maps_are_used_too(terminal: Any, tiny_var: Path, tmp_path: Path) -> None:
    line = ["compress", tiny_var, "--method", "cache.snapkv", "--set", "budget=40%", "--set", "window=4"]
    terminal(*line, "--out", tmp_path / "v")
    drawn = ["generate", tmp_path / "v", "--label", 1, "--out", tmp_path / "a.png", "--overwrite"]
    saved = terminal.json(*drawn)
    assert (saved["policy"], saved["policies_saved"]) == ("cache.snapkv", True)
    assert terminal.json(*drawn, "--no-policy")["policy"] == "cache.full"
    assert terminal.json(*drawn, "--kv", "streaming", "--budget", "50%")["policy"] == "cache.streaming"


def test_the_report_draws_under_what_is_saved(
    terminal: Any, tiny_dit: Path, cached: Path, tmp_path: Path
) -> None:
    line = ["report", cached, "--against", tiny_dit, "--count", 2, "--steps", 4, "--out", tmp_path / "report"]
    shown = terminal(*line)
    assert "Under" in shown
    assert "no policy" in shown
    assert "fora" in shown
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [entry["policies"] for entry in found["entries"]] == [[], ["diffusion.fora interval=2"]]
    assert "diffusion.fora interval=2" in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--step-cache", "forra"], "There is no step cache named 'forra'"),
        (["--step-cache", "fora", "--set", "order=1"], "order"),
        (["--step-cache", "fora", "--set", "interval=0"], "interval"),
        (["--set", "interval=2"], "--set belongs to a step cache"),
        (["--kv", "full"], "--kv is for a model that draws images map by map"),
    ],
)
def test_mistakes(
    options: list[str], complaint: str, tiny_dit: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = ["generate", str(tiny_dit), "--steps", "2", "--out", str(tmp_path / "x.png"), *options]
    assert explain(app, line) != 0
    assert complaint in " ".join(capfd.readouterr().err.split())
    assert not (tmp_path / "x.png").exists()


def test_a_damaged_file_is_one_sentence(
    tiny_dit: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], terminal: Any
) -> None:
    terminal("compress", tiny_dit, "--method", "diffusion.fora", "--out", tmp_path / "a")
    (tmp_path / "a" / FILE).write_text("{")
    line = ["generate", str(tmp_path / "a"), "--steps", "2", "--out", str(tmp_path / "x.png")]
    assert explain(app, line) != 0
    assert "is not valid JSON" in " ".join(capfd.readouterr().err.split())
    terminal(*line, "--no-policy")


def test_texts_know_no_step_caches(tiny_llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert explain(app, ["generate", str(tiny_llama), "x", "--step-cache", "fora"]) != 0
    assert "--step-cache is for a model that draws images out of noise" in " ".join(
        capfd.readouterr().err.split()
    )
