"""What one choice of ScaleKV costs at the size of Infinity-8B, beside the attention it follows and beside kvpress.

One layer in bfloat16 on one thread: 2 rows, 28 heads of 128 channels, 4000 cached tokens of which the last 2304 are
the map just drawn (48 x 48). Interleaved, medians:

* update: projection of the 16 probes, scores, selection, and the copy of the kept keys and values;
* attention: scaled dot product of the map's 2304 queries with the 4000 tokens, without any projection;
* kvpress: SnapKV's scoring of kvpress on tensors of the same size, in a process of its own; it projects its window
  of queries too, but selects and copies nothing.

    python benchmarks/scalekv_selection.py [--repeats 7] [--kept 650] [--peer-python .venv-kvpress/bin/python]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from processes import one_thread, write_results
from torch.nn import functional as F

from modicum.allocate.cache_tokens import CacheBudget
from modicum.cache.eviction import EvictingCache
from modicum.cache.scalekv import ScaleKV
from modicum.models.next_scale import Queries, Schedule, SelfAttention

HERE = Path(__file__).parent
ROWS, HEADS, HEAD_DIM = 2, 28, 128
SCHEDULE = Schedule.of([(32, 53), (48, 48), (64, 64)])  # 1696 tokens of history, 2304 of the map
TOKENS = SCHEDULE.offsets[2]
WINDOWS = (64, 16)  # of kvpress: its default, and as many queries as ScaleKV has probes


class Update:
    """One choice after the map, again and again from the same state.

    Args:
        method: which scores.
        kept: tokens that stay.
    """

    def __init__(self, method: ScaleKV, kept: int) -> None:
        torch.manual_seed(0)
        with torch.device("meta"):
            attention = SelfAttention(0, HEADS * HEAD_DIM, HEADS)
        self.attention = attention.to_empty(device="cpu").bfloat16()
        with torch.no_grad():
            self.attention.mat_qkv.weight.normal_(std=0.02)
        self.inputs = torch.randn(ROWS, SCHEDULE.tokens[1], HEADS * HEAD_DIM).bfloat16()
        self.maps = [torch.randn(2, ROWS, HEADS, count, HEAD_DIM).bfloat16() for count in SCHEDULE.tokens[:2]]
        self.queries = torch.randn(ROWS, HEADS, SCHEDULE.tokens[1], HEAD_DIM).bfloat16()
        budget = CacheBudget.wanted(SCHEDULE, [[0, SCHEDULE.tokens[0], kept]])
        self.cache = EvictingCache(lambda schedule: budget, method.choose)

    def seconds(self) -> float:
        """Fill the cache, then time the choice."""
        self.fill()
        queries = Queries(self.inputs, self.attention._project, self.queries, 1.0)
        started = time.perf_counter()
        self.cache.settle(0, 1, queries)
        return time.perf_counter() - started

    def attention_seconds(self) -> float:
        """Time the attention that goes before."""
        self.fill()
        keys, values = self.cache.held(0)
        started = time.perf_counter()
        F.scaled_dot_product_attention(self.queries, keys, values)
        return time.perf_counter() - started

    def fill(self) -> None:
        """Both maps in the cache, nothing dropped yet."""
        self.cache.begin(SCHEDULE)
        for keys, values in self.maps:
            self.cache.extend(0, keys, values)


class Peer:
    """kvpress in its own process."""

    def __init__(self, python: str) -> None:
        sizes = {"--rows": ROWS, "--heads": HEADS, "--head-dim": HEAD_DIM, "--tokens": TOKENS}
        command = [python, str(HERE / "peers" / "kvpress_snapkv.py")]
        command += [str(part) for pair in sizes.items() for part in pair]
        pipe: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=one_thread(), **pipe)

    def seconds(self, window: int) -> float:
        """Time one scoring."""
        assert self.process.stdin
        assert self.process.stdout
        print(window, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("kvpress did not answer; see benchmarks/README.md for its environment.")
        return float(json.loads(answer)["seconds"])

    def close(self) -> None:
        """End it."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """All timings in seconds, taken in turns; the first round warms up and is dropped."""
    updates = {mode: Update(ScaleKV(mode=mode), options.kept) for mode in ("released", "paper")}
    peer = Peer(options.peer_python) if options.peer_python else None
    taken: dict[str, list[float]] = {}
    for _ in range(options.repeats + 1):
        for mode, update in updates.items():
            taken.setdefault(f"update, {mode}", []).append(update.seconds())
        taken.setdefault("attention", []).append(updates["released"].attention_seconds())
        for window in WINDOWS if peer else ():
            taken.setdefault(f"kvpress, {window} queries", []).append(peer.seconds(window))
    if peer:
        peer.close()
    return {name: seconds[1:] for name, seconds in taken.items()}


def table(medians: dict[str, float]) -> str:
    """Milliseconds, and the ratios of the two updates to everything else."""
    lines = ["| | ms | released : this | paper : this |", "|---|---|---|---|"]
    for name, seconds in medians.items():
        ratios = (medians[f"update, {mode}"] / seconds for mode in ("released", "paper"))
        lines.append(f"| {name} | {1000 * seconds:.1f} | " + " | ".join(f"{r:.3f}" for r in ratios) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--kept", type=int, default=650, help="tokens that stay")
    parser.add_argument("--peer-python", help="python of an environment with kvpress; without it, no peer")
    options = parser.parse_args()
    torch.set_num_threads(1)
    before = os.getloadavg()[0]
    taken = measure(options)
    load = {"before": before, "after": os.getloadavg()[0]}
    medians = {name: median(seconds) for name, seconds in taken.items()}
    shape = {"rows": ROWS, "heads": HEADS, "head_dim": HEAD_DIM, "tokens": TOKENS, "kept": options.kept}
    content = {"shape": shape, "dtype": "bfloat16", "torch": torch.__version__, "load": load}
    file = write_results(
        "scalekv-selection", content | {"seconds": taken, "median": medians}, HERE / "results"
    )
    print(table(medians))
    print(f"\nload average {load['before']:.2f} before, {load['after']:.2f} after; {file}")


if __name__ == "__main__":
    main()
