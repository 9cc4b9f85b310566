"""`modicum report` for diffusion transformers: dense, pruned and recovered drawn from equal noise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from modicum.cli.app import app
from modicum.cli.failures import explain
from modicum.evaluate.depth_comparison import DepthComparison
from modicum.zoo.digits import Judge

FEW = ["--count", 4, "--at-once", 2, "--steps", 2]


@pytest.fixture(scope="module")
def judged(tiny_dit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny DiT with a judge beside it."""
    directory = tmp_path_factory.mktemp("judged") / "tiny-dit"
    shutil.copytree(tiny_dit, directory)
    save_file(Judge().state_dict(), directory / "judge.safetensors")
    return directory


def test_report_shows_what_pruning_left(terminal: Any, judged: Path, tmp_path: Path) -> None:
    pruned, copy = tmp_path / "pruned", tmp_path / "copy"
    terminal("compress", judged, "--method", "prune.oracle", "--out", pruned)
    shutil.copytree(judged, copy)
    line = ["report", pruned, "--against", judged, "--also", copy, *FEW, "--seed", 3]
    found = terminal.json(*line)
    page = (pruned / "report" / "report.html").read_text()
    assert json.loads((pruned / "report" / "report.json").read_text()) == found
    dense, half, same = DepthComparison.model_validate(found).entries
    assert [each.name for each in (dense, half, same)] == ["tiny-dit", "pruned", "copy"]
    assert (dense.blocks, half.blocks) == (4, 2)
    assert half.parameters < dense.parameters
    assert half.disk_bytes < dense.disk_bytes
    assert dense.seconds_ratio.median == 1
    assert (same.accuracy, same.frechet) == (dense.accuracy, dense.frechet)  # equal noise, equal pictures
    assert half.frechet != dense.frechet
    assert found["decisions"][0]["kept"] == [
        0,
        3,
    ]  # one of each half: the first pair's first, the last's last
    assert found["sampling"] == {"cfg": 1.5, "sampler": "ddpm", "steps": 2}
    assert found["labels"] == [0, 2, 5, 7]  # spread over the classes
    assert page.count("data:image/png") == 3


def test_without_a_judge_nothing_is_said_of_quality(terminal: Any, tiny_dit: Path, tmp_path: Path) -> None:
    shown = terminal("report", tiny_dit, "--against", tiny_dit, *FEW, "--out", tmp_path)
    assert "Frechet" not in shown
    assert "were not measured" in (tmp_path / "report.html").read_text()


MISTAKES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "text options": (["report", "DIT", "--against", "DIT", "--tokens", "9"], ("--tokens", "draws images")),
    "image options": (["report", "LLAMA", "--against", "LLAMA", "--steps", "9"], ("--steps", "writes text")),
    "other pictures": (["report", "SIT", "--against", "DIT", "--vae", "VAE"], ("pixels itself",)),
    "no VAE": (["report", "SIT", "--against", "SIT"], ("draws latents", "--vae")),
    "text model": (["report", "LLAMA", "--against", "DIT"], ("no diffusion transformer",)),
    "against text": (["report", "DIT", "--against", "LLAMA"], ("draws images", "modicum report")),
    "evaluate": (["evaluate", "DIT", "--against", "DIT"], ("draws images", "modicum report")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_of_a_report_end_in_a_sentence(
    mistake: str,
    tiny_dit: Path,
    tiny_llama: Path,
    tiny_latent_sit: Path,
    tiny_vae: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"DIT": tiny_dit, "LLAMA": tiny_llama, "SIT": tiny_latent_sit, "VAE": tiny_vae}
    line, expected = MISTAKES[mistake]
    assert explain(app, [str(names.get(word, word)) for word in line]) != 0
    message = " ".join(capfd.readouterr().err.split())
    for words in expected:
        assert words in message
