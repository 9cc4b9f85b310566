"""The benchmark of sparse tensor cores runs, and its numbers belong together."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "semi_structured.py"


def test_layers_and_model_are_measured_both_ways(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("semi_structured_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    line = ["--size", "tiny", "--device", "cpu", "--blocks", "2", "--tokens", "1", "9", "--repeats", "1"]
    found = module.main([*line, "--out", str(tmp_path)])
    assert [(row["shape"], row["tokens"]) for row in found["layers"]] == [([64, 128], 1), ([64, 128], 9)]
    assert [(row["way"], row["kind"], row["tokens"]) for row in found["models"]] == [
        (way, kind, tokens)
        for way in ("dense", "sparse")
        for tokens in (1, 9)
        for kind in ("prefill", "step")
    ]
    assert all(row["ms"] > 0 for row in found["models"])
    assert all(
        row["error"] == 0 for row in found["models"]
    )  # a processor has no sparse kernel: both are dense
    (written,) = tmp_path.iterdir()
    assert json.loads(written.read_text())["layers"] == found["layers"]
