"""The benchmark of training steps runs, and its losses reach the weights that it says it trains."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from modicum.trainer import Moment

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "training_steps.py"
STEPS = ("lora", "mask", "finetune", "masked_kd")


@pytest.fixture(scope="module")
def benchmark() -> Any:
    spec = importlib.util.spec_from_file_location("training_steps", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("more", [[], ["--recompute", "--parts", "2"]])
def test_every_step_runs_and_is_written_down(benchmark: Any, more: list[str], tmp_path: Path) -> None:
    line = ["--size", "tiny", "--device", "cpu", "--batch", "4", "--repeats", "1", *more]
    rows = benchmark.main([*line, "--out", str(tmp_path)])
    assert tuple(row.step for row in rows) == STEPS
    assert all(row.ms > 0 for row in rows)
    (written,) = tmp_path.iterdir()
    assert [row["ms"] for row in json.loads(written.read_text())["rows"]] == [row.ms for row in rows]


@pytest.mark.parametrize("name", STEPS)
def test_the_loss_reaches_what_is_trained(benchmark: Any, name: str) -> None:
    config, cpu = benchmark.SIZES["tiny"], torch.device("cpu")
    batch = {"x0": torch.randn(4, 4, 4, 4), "y": torch.arange(4)}
    with benchmark.prepared(name, config, cpu, False) as (loss, weights):
        loss(batch, Moment(0, 100, torch.Generator().manual_seed(0))).backward()
        reached = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in weights]
    assert sum(reached) > len(reached) / 3
    if name == "mask":
        assert reached[-2:] == [True, True]  # the logits of both pairs


def test_each_is_compared_with_its_plain_step(benchmark: Any) -> None:
    row = benchmark.Row
    shown = benchmark.table([row("lora", 1, 10.0, 4.0), row("mask", 2, 15.0, 5.0), row("finetune", 3)])
    assert shown.splitlines()[3] == "| mask | 2 | 15.0 | 1.50 | 5.0 | 1.25 |"
    assert "out of memory" in shown.splitlines()[4]
