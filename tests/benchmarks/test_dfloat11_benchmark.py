"""The benchmark of decoding on the fly runs, and coded models give the logits of plain ones."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "dfloat11.py"


def test_all_ways_run_and_give_the_same_bits(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("dfloat11_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    line = [
        "--size",
        "tiny",
        "--device",
        "cpu",
        "--blocks",
        "2",
        "--batch",
        "1",
        "3",
        "--repeats",
        "1",
        "--context",
        "8",
    ]
    rows = module.main([*line, "--out", str(tmp_path)])
    assert [(row["way"], row["batch"]) for row in rows] == [
        (way, batch) for way in ("plain", "coded", "coded, ahead", "coded, on the host") for batch in (1, 3)
    ]
    assert all(row["same"] for row in rows)
    (written,) = tmp_path.iterdir()
    assert [row["ms"] for row in json.loads(written.read_text())["rows"]] == [row["ms"] for row in rows]
