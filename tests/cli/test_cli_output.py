"""What commands print: tables for people, one JSON object for machines, nothing when asked to be quiet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modicum.cli.app import app
from modicum.cli.failures import explain


@pytest.fixture(scope="module")
def small(tiny_llama: Path, token_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "small"
    line = ["compress", tiny_llama, "-m", "quantize.rtn", "-s", "group_size=32", "--out", out, "--quiet"]
    assert explain(app, [str(part) for part in line]) == 0
    return out


def test_compress(terminal: Any, tiny_llama: Path, token_file: Path, tmp_path: Path) -> None:
    line = [
        "compress",
        tiny_llama,
        "-m",
        "prune.wanda",
        "--calibration",
        token_file,
        "--samples",
        16,
        "--length",
        32,
    ]
    shown = terminal(*line, "--out", tmp_path / "a")
    assert "prune.wanda" in shown
    assert "block 3/3 written" in shown
    assert "modicum report" in shown
    assert "\x1b" not in shown
    found = terminal.json(*line, "--out", tmp_path / "b")
    assert found["out"] == str(tmp_path / "b")
    assert found["weights_bytes"] == (tmp_path / "b" / "model.safetensors").stat().st_size
    assert len(found["layers"]) == 21
    assert found["plan"]["tokens"] == 512
    assert terminal(*line, "--out", tmp_path / "c", "--quiet") == ""


def test_settings_reach_their_methods(terminal: Any, tiny_llama: Path, tmp_path: Path) -> None:
    terminal(
        "compress", tiny_llama, "-m", "prune.magnitude", "-m", "quantize.rtn", "-s", "sparsity=0.25",
        "-s", "quantize.rtn.bits=8", "-s", "group_size=32", "-s", "skip=[q, '*.2.*']", "--seed", 7,
        "--out", tmp_path / "a",
    )  # fmt: skip
    recipe = json.loads((tmp_path / "a" / "modicum.json").read_text())["recipe"]
    prune, quantize = (next(iter(step.values())) for step in recipe["steps"])
    assert prune["sparsity"] == 0.25
    assert (quantize["bits"], quantize["group_size"]) == (8, 32)
    assert prune["skip"] == quantize["skip"] == ["q", "*.2.*"]
    assert recipe["seed"] == 7
    terminal("compress", tiny_llama, "-m", "prune.magnitude", "-s", "pattern=2:4", "--out", tmp_path / "b")
    recipe = json.loads((tmp_path / "b" / "modicum.json").read_text())["recipe"]
    assert recipe["steps"][0]["prune.magnitude"]["pattern"] == "2:4"


def test_a_recipe_file_and_options_beside_it(
    terminal: Any, tiny_llama: Path, token_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text(
        f"seed: 3\ncalibration: {{source: {token_file}, samples: 4, length: 8}}\nsteps: [prune.wanda]\n"
    )
    plan = ["plan", tiny_llama, "--recipe", tmp_path / "r.yaml"]
    assert terminal.json(*plan)["tokens"] == 32
    assert terminal.json(*plan, "--samples", 2)["tokens"] == 16


def test_plan(terminal: Any, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["plan", tiny_llama, "-m", "quantize.rtn"]
    assert "21 of 23 weight matrices" in terminal(*line)
    assert terminal.json(*line)["blocks"] == 3
    assert terminal(*line, "--quiet") == ""
    assert list(tmp_path.iterdir()) == []


def test_evaluate_and_report(terminal: Any, small: Path, tiny_llama: Path, tmp_path: Path) -> None:
    line = [small, "--against", tiny_llama, "--tokens", 256, "--window", 64]
    found = terminal.json("evaluate", *line, "--only", "quality", "--only", "size")
    assert found["after"]
    assert terminal("evaluate", *line, "--only", "size", "--quiet") == ""
    found = terminal.json("report", *line, "--out", tmp_path / "report")
    assert found["after"]
    assert {"report.html", "report.json"} <= {file.name for file in (tmp_path / "report").iterdir()}


def test_generate(terminal: Any, small: Path) -> None:
    line = ["generate", small, "def f", "--tokens", 4]
    found = terminal.json(*line)
    assert found["prompt"] == "def f"
    assert terminal(*line).startswith("def f")
    assert terminal(*line, "--quiet") == ""


def test_methods_show_and_doctor(terminal: Any) -> None:
    names = [method["name"] for method in terminal.json("methods")]
    assert {"prune.wanda", "quantize.gptq"} <= set(names)
    shown = terminal("methods")
    for name in names:
        assert name in shown
        described = terminal.json("show", name)
        assert described["summary"]
        assert all(setting["meaning"] for setting in described["settings"])
        assert name in terminal("show", name)
    assert "torch" in terminal.json("doctor")
    assert "accelerator" in terminal("doctor")
    assert terminal("methods", "--quiet") + terminal("doctor", "--quiet") == ""


def test_a_real_process_prints_one_object(
    small: Path, tiny_llama: Path, tmp_path: Path, toolbox: Any
) -> None:
    done = toolbox.command(
        "compress", tiny_llama, "-m", "prune.magnitude", "--out", tmp_path / "out", "--json"
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert json.loads(done.stdout)["out"] == str(tmp_path / "out")
    done = toolbox.command("generate", small, "def f", "--tokens", 3, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
