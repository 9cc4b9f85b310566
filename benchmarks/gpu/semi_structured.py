"""What 2:4 weights gain on a GPU with sparse tensor cores: layers and a model of Llama's shape, against dense bfloat16.

    python benchmarks/gpu/semi_structured.py [--blocks 4] [--tokens 1 16 64 256 1024 4096] [--device cuda]

Layers have the shapes of Llama-2-7B and Llama-3.1-8B. Each product is launched many times in a row, over copies of the
matrix that together are larger than the cache of the GPU, and the time is divided; `kernel` is the same launches
captured in a CUDA graph, without the time the processor takes to issue them.

The model has random weights in blocks of the shape of Llama-3.1-8B, fewer of them, with 32,000 words; it is pruned by
`modicum compress --method prune.magnitude --set pattern=2:4`, and opened once sparse and once dense. `prefill` is one
pass over so many tokens without a cache, `step` one generated token for so many sequences behind 128 tokens.

The products are compared with dense ones of the same matrix in float32, and the logits with each other. Prints tables
and writes results/semi-structured-DATE.json. `--size tiny --device cpu` runs in seconds and shows only that it runs.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import modicum
from modicum.evaluate import environment
from modicum.evaluate.size import memory_size
from modicum.kernels import sparse24
from modicum.kernels.selection import semi_structured

sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parent))
from dfloat11 import random_llama, step_seconds
from processes import write_results

LAYERS = {
    "published": [
        (4096, 4096), (11008, 4096), (4096, 11008), (14336, 4096), (4096, 14336), (28672, 8192)
    ],
    "tiny": [(64, 128)],
}  # fmt: skip
CACHE_BYTES = 1 << 28  # more than any cache
LAUNCHES = 20
CONTEXT = 128
MIB = 2**20
Row = dict[str, Any]


def pruned(rows: int, columns: int, device: str) -> Tensor:
    """A random 2:4 matrix, bfloat16 [rows, columns]."""
    generator = torch.Generator(device).manual_seed(0)
    weight = torch.randn(rows, columns, device=device, generator=generator) * 0.02
    return weight.masked_fill(semi_structured(weight.abs(), 2, 4), 0).bfloat16()


def now(device: str) -> float:
    """Seconds, when the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return perf_counter()


def milliseconds(products: Sequence[Callable[[], Any]], device: str, repeats: int) -> tuple[float, float]:
    """Median time of one of several like products, as issued by the processor and as replayed from a graph."""
    calls = [products[i % len(products)] for i in range(LAUNCHES)]

    def all_of_them() -> None:
        for call in calls:
            call()

    issued = _timed(all_of_them, device, repeats) / LAUNCHES
    if device != "cuda":
        return issued, issued
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        all_of_them()
    return issued, _timed(graph.replay, device, repeats) / LAUNCHES


def _timed(work: Callable[[], None], device: str, repeats: int) -> float:
    times = []
    for _ in range(repeats + 2):
        started = now(device)
        work()
        times.append(1000 * (now(device) - started))
    return median(times[2:])


def layer_row(shape: tuple[int, int], tokens: int, kernel: sparse24.Kernel | None, given: Any) -> Row:
    """One shape at one number of tokens; without a kernel only the dense product is timed."""
    dense = pruned(*shape, given.device)
    copies = max(2, CACHE_BYTES // dense.nbytes + 1) if given.device == "cuda" else 1
    x = torch.randn(tokens, shape[1], device=given.device, dtype=torch.bfloat16)
    matrices = [dense.clone() for _ in range(copies)]
    plain = milliseconds([lambda w=w: F.linear(x, w) for w in matrices], given.device, given.repeats)
    row: Row = {"shape": list(shape), "tokens": tokens, "dense_ms": plain[0], "dense_kernel_ms": plain[1]}
    del matrices
    if kernel is None:
        return row
    packed = [kernel.pack(dense) for _ in range(copies)]
    sparse = milliseconds(
        [lambda p=p: sparse24.matmul(x, p, kernel, shape[0]) for p in packed], given.device, given.repeats
    )
    exact = x.float() @ dense.float().T
    errors = [
        relative(found, exact)
        for found in (F.linear(x, dense), sparse24.matmul(x, packed[0], kernel, shape[0]))
    ]
    row |= {
        "sparse_ms": sparse[0],
        "sparse_kernel_ms": sparse[1],
        "dense_error": errors[0],
        "sparse_error": errors[1],
    }
    row["bytes"] = sum(part.nbytes for part in packed[0]) / dense.nbytes
    return row


def relative(found: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((found.float() - exact.float()).norm() / exact.float().norm())


@torch.no_grad()
def model_rows(given: Any) -> list[Row]:
    """A pruned model, sparse and dense: milliseconds, bytes, and whether the logits agree."""
    rows: list[Row] = []
    logits: dict[tuple[str, int], Tensor] = {}
    with tempfile.TemporaryDirectory() as folder:
        plain, small = Path(folder) / "plain", Path(folder) / "pruned"
        random_llama(given.size, given.blocks, plain)
        modicum.compress(plain, [{"prune.magnitude": {"pattern": "2:4"}}], out=small, device=given.device)
        for way in ("dense", "sparse"):
            model: Any = modicum.load(
                small, dtype=torch.bfloat16, device=given.device, sparse_kernels=way == "sparse"
            )
            print(f"{way}: {model.sparse_products}", flush=True)
            size = memory_size(model) / MIB
            for tokens in given.tokens:
                for kind, (ms, found) in measured(model, tokens, given).items():
                    error = relative(found, logits.setdefault((kind, tokens), found))
                    rows.append(
                        {
                            "way": way,
                            "kind": kind,
                            "tokens": tokens,
                            "ms": ms,
                            "error": error,
                            "model_mib": size,
                        }
                    )
            del model
            gc.collect()
    return rows


def measured(model: Any, tokens: int, given: Any) -> dict[str, tuple[float, Tensor]]:
    """Milliseconds and logits of a prefill of so many tokens, and of a step of so many sequences."""
    ids = torch.arange(tokens, device=given.device).view(1, -1) % model.config.vocab_size
    taken: list[Tensor] = []
    ms = _timed(
        lambda: taken.append(model(ids, use_cache=False, logits_to_keep=1).logits),
        given.device,
        given.repeats,
    )
    found = {"prefill": (ms, taken[-1])}
    if tokens <= given.most_sequences:
        seconds, logits = step_seconds(model, tokens, CONTEXT, given.repeats)
        found["step"] = (1000 * seconds, logits)
    return found


def layer_table(rows: Sequence[Row]) -> str:
    """The products as markdown; a ratio below 1 says that 2:4 took less."""
    lines = [
        "| matrix | tokens | dense ms | 2:4 ms | ratio | kernels alone | error | of dense |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [f"{row['shape'][0]} x {row['shape'][1]}", str(row["tokens"]), f"{row['dense_ms']:.4f}"]
        if "sparse_ms" in row:
            alone = row["sparse_kernel_ms"] / row["dense_kernel_ms"]
            cells += [f"{row['sparse_ms']:.4f}", f"{row['sparse_ms'] / row['dense_ms']:.2f}", f"{alone:.2f}"]
            cells += [f"{row['sparse_error']:.4f}", f"{row['dense_error']:.4f}"]
        else:
            cells += ["-"] * 5
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def model_table(rows: Sequence[Row]) -> str:
    """The models as markdown."""
    lines = [
        "| model | tokens or sequences | dense ms | 2:4 ms | ratio | difference of logits |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    dense = {(row["kind"], row["tokens"]): row["ms"] for row in rows if row["way"] == "dense"}
    for row in rows:
        if row["way"] == "sparse":
            before, ms = dense[row["kind"], row["tokens"]], row["ms"]
            cells = [row["kind"], str(row["tokens"]), f"{before:.2f}", f"{ms:.2f}", f"{ms / before:.2f}"]
            lines.append(f"| {' | '.join([*cells, format(row['error'], '.4f')])} |")
    sizes = {row["way"]: row["model_mib"] for row in rows}
    return "\n".join(
        [*lines, "", f"weights: {sizes['dense']:,.0f} MiB dense, {sizes['sparse']:,.0f} MiB 2:4"]
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, list[Row]]:
    """Measure layers and model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=LAYERS, default="published")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 64, 256, 1024, 4096])
    parser.add_argument("--most-sequences", type=int, default=256, help="steps are measured up to so many")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    given = parser.parse_args(arguments)
    kernel = sparse24.kernel_for(torch.device(given.device))
    print(f"kernel: {kernel.name if kernel else 'none'}")
    layers = [
        layer_row(shape, tokens, kernel, given) for shape in LAYERS[given.size] for tokens in given.tokens
    ]
    print(layer_table(layers), flush=True)
    models = model_rows(given)
    print(model_table(models))
    content = {
        "options": {key: str(value) for key, value in vars(given).items() if key != "out"},
        "kernel": kernel.name if kernel else None,
        "layers": layers,
        "models": models,
        "environment": environment(given.device),
    }
    print(write_results("semi-structured", content, given.out))
    return {"layers": layers, "models": models}


if __name__ == "__main__":
    main()
