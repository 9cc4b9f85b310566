"""The benchmark of DiT's depths runs, and compares like with like."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "tinyfusion_dit.py"
LINE = ["--size", "tiny", "--device", "cpu", "--batch", "1", "2", "--repeats", "1", "--compile", "off"]


@pytest.fixture(scope="module")
def benchmark() -> Any:
    spec = importlib.util.spec_from_file_location("tinyfusion_dit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_depth_runs_and_is_written_down(benchmark: Any, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    rows = benchmark.main([*LINE, "--out", str(tmp_path)])
    wanted = [(d, c, b) for d in (4, 3, 2, 1) for c in ("modicum", "diffusers") for b in (1, 2)]
    assert [(row.depth, row.code, row.batch) for row in rows] == wanted
    assert all(row.step_ms > 0 and row.iterations == 1000 / row.step_ms for row in rows)
    (written,) = tmp_path.iterdir()
    facts = json.loads(written.read_text())
    assert [row["step_ms"] for row in facts["rows"]] == [row.step_ms for row in rows]


def test_speed_is_compared_with_the_deepest_of_the_same_kind(benchmark: Any) -> None:
    rows = [
        benchmark.Row("modicum", 28, 8, False, 237.0, step_ms=40.0),
        benchmark.Row("modicum", 28, 8, True, 237.0, step_ms=30.0),
        benchmark.Row("modicum", 14, 8, True, 118.5, step_ms=20.0),
        benchmark.Row("diffusers", 14, 8, True, 118.5, step_ms=25.0),
    ]
    shown = [
        [cell.strip() for cell in line.split("|")[6:10]] for line in benchmark.table(rows).splitlines()[2:]
    ]
    assert shown == [
        ["40.00", "25.00", "1.00", "1.00"],
        ["30.00", "33.33", "1.00", "1.00"],
        ["20.00", "50.00", "1.50", "2.00"],
        ["25.00", "40.00", "1.00", "1.00"],
    ]


def test_another_output_of_diffusers_stops_the_benchmark(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("diffusers")
    model = benchmark.random_model(benchmark.SIZES["tiny"], torch.device("cpu"))
    monkeypatch.setattr(benchmark, "ALLOWED", -1)
    with torch.no_grad(), pytest.raises(SystemExit, match="another output"):
        benchmark.theirs(model)


def test_running_out_of_memory_is_a_row(benchmark: Any) -> None:
    def exhausted(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory left")

    model = benchmark.random_model(benchmark.SIZES["tiny"], torch.device("cpu"))
    row = benchmark.measure("modicum", exhausted, model, 1, False, 1)
    assert row.step_ms is None
    assert "out of memory" in benchmark.table([row])
