"""The benchmark of nano depths keeps its rows, goes on with what is missing, and tells mean and spread."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows() -> Any:
    return load("kept_rows")


class TestRows:
    def test_what_is_there_is_not_measured_again(self, rows: Any, tmp_path: Path) -> None:
        file, measured = tmp_path / "rows.json", []

        def measure() -> dict[str, float]:
            measured.append(1)
            if len(measured) == 3:
                raise KeyboardInterrupt
            return {"after": float(len(measured))}

        def run() -> list[dict[str, float]]:
            kept = rows.KeptRows(file, {"pair": (1, 2)}, {"command": "c"})
            return [kept.row(seed, name, measure) for seed in (0, 1) for name in ("a", "b")]

        with pytest.raises(KeyboardInterrupt):
            run()
        assert run() == [{"after": 1.0}, {"after": 2.0}, {"after": 4.0}, {"after": 5.0}]
        assert json.loads(file.read_text())["command"] == "c"
        assert run() == run()
        assert len(measured) == 5

    def test_rows_of_other_settings_are_not_taken_over(self, rows: Any, tmp_path: Path) -> None:
        file = tmp_path / "rows.json"
        rows.KeptRows(file, {"steps": 1}, {}).row(0, "a", lambda: {"after": 1.0})
        assert rows.KeptRows(file, {"steps": 2}, {}).row(0, "a", lambda: {"after": 2.0}) == {"after": 2.0}

    def test_the_table_tells_mean_and_spread(self, rows: Any) -> None:
        columns = {"after": "{:.2f}".format, "frechet": "{:.0f}".format, "missing": str}
        runs = [
            {"a": {"kept": [0, 2], "after": 0.1, "frechet": 10}, "b": {"after": 0.5}},
            {"a": {"kept": [1, 2], "after": 0.3, "frechet": 30}, "b": {"after": 0.5}},
        ]
        assert rows.table(runs, columns).splitlines()[2:] == [
            "| a | 0 2 | 0.20 (0.10..0.30) | 20 (10..30) |",
            "| b |  | 0.50 (0.50..0.50) |  |",
        ]
        assert rows.table(runs[:1], columns).splitlines()[2] == "| a | 0 2 | 0.10 | 10 |"
        assert "missing" not in rows.table(runs, columns)


def test_an_interrupted_benchmark_distils_what_was_chosen_before(
    rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("accelerate")
    benchmark = load("tinyfusion_nano")
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path)
    bench = benchmark.diffusion_model("nano-dit")
    monkeypatch.setattr(bench, "batch", 2)
    monkeypatch.setattr(benchmark.Bench, "loss", lambda self, model: float(len(model.blocks)))
    real, seen = benchmark.draw_digits, []

    def few(model: Any, per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(len(model.blocks))
        return real(model, per_class, steps=2, cfg=1.0)

    monkeypatch.setattr(benchmark, "draw_digits", few)
    given = argparse.Namespace(
        seeds=[0], learn=1, train=1, groups="4:6,2:6", choices=["learned", "oracle"], per_class=1
    )
    benchmark.compare(bench, given)
    first = capsys.readouterr().out
    assert seen == [12, 6, 6, 6, 6]  # the whole model, two choices, two distillations
    file = tmp_path / "tinyfusion-nano-dit-4of6-2of6-1.json"
    whole = json.loads(file.read_text())
    run = whole["runs"]["0"]
    assert list(run) == ["learned", "oracle", "learned, logits_kd", "learned, masked_kd"]
    assert all({"before", "after", "frechet", "accuracy"} <= row.keys() for row in run.values())
    del run["learned, masked_kd"]
    file.write_text(json.dumps(whole))
    benchmark.compare(bench, given)
    assert seen[5:] == [12, 6]
    assert capsys.readouterr().out.splitlines()[-6:] == first.splitlines()[-6:]
