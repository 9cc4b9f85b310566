"""The benchmark of Infinity's cache runs, and its formulas give the published figures."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from modicum.models.infinity import Infinity

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "scalekv_infinity.py"
# rows of a batch of 8 with guidance -> MiB with float32 keys and bfloat16 values, as published
PUBLISHED = {
    "2b": {"original": 38550.0, "scalekv 20 %": 7800.0, "scalekv 10 %": 3900.0, "scalekv 4 %": 1590.0},
    "8b": {"original": 84328.125, "scalekv 20 %": 17062.5, "scalekv 10 %": 8531.25, "scalekv 4 %": 3478.125},
}


@pytest.fixture(scope="module")
def benchmark() -> Any:
    spec = importlib.util.spec_from_file_location("scalekv_infinity", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_case_runs_and_is_written_down(benchmark: Any, tmp_path: Path) -> None:
    line = ["--size", "tiny", "--device", "cpu", "--batch", "2", "--repeats", "1", "--out", str(tmp_path)]
    rows = benchmark.main(line)
    assert [row.case for row in rows] == list(benchmark.CASES)
    carried = [row.carried_mib for row in rows]
    assert carried == sorted(carried, reverse=True)
    assert carried[1] == pytest.approx(carried[0] * 4 / 6)
    assert all(row.draw_ms > 0 and row.decode_ms > 0 for row in rows)
    (written,) = tmp_path.iterdir()
    facts = json.loads(written.read_text())
    assert [row["carried_mib"] for row in facts["rows"]] == carried
    assert facts["environment"]["device"] == "cpu"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_formula_gives_the_published_figures(benchmark: Any, name: str) -> None:
    size = benchmark.SIZES[name]
    with torch.device("meta"):
        model = Infinity(size.config.model_copy(update={"text_maxlen": 1}), torch.bfloat16)
    for case, published in PUBLISHED[name].items():
        policy = size.policy(case, model)
        before_the_last = benchmark.expected(case, policy, model, len(model.schedule) - 2, 16) / 2**20
        bytes_per_channel = 6 if case == "original" else 4  # ours stores keys as attention reads them
        wanted = published * bytes_per_channel / 6
        assert before_the_last == wanted


def test_a_cache_of_another_size_stops_the_benchmark(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "kv_nbytes", lambda *_: 1)
    model = Infinity(benchmark.SIZES["tiny"].config)
    text = benchmark.TextFeatures(torch.randn(2, 128), (2,))
    with pytest.raises(SystemExit, match="the formula says"):
        benchmark.draw(model, "full", benchmark.SIZES["tiny"].policy("full", model), text)


def test_running_out_of_memory_is_a_result(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(benchmark, "draw", exhausted)
    model = Infinity(benchmark.SIZES["tiny"].config)
    row = benchmark.measure("tiny", "full", 1, model, None, 1)
    assert row.draw_ms is None
    assert "out of memory" in benchmark.table([row])
