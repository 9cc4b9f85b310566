"""How much faster sampling is with half of the blocks: dense and pruned in turns, in one process.

    python benchmarks/depth_speed.py [--rounds 5] [--half-rounds 2]

Sixteen pictures at once, without guidance, at the shape of DiT-S/4 (width 384, 12 blocks, 64 tokens, random weights)
and with nano-dit; every second block is removed. In every round the two models draw one after the other, and the
order changes from round to round; shown is the median of the ratios of a round, with the lowest and the highest. Time
does not depend on what the weights are. A processor without bfloat16 units computes in that type many times slower,
so such a row says what depth is worth there and nothing about the type. Time is that of the processor, one thread:
what else runs on the machine counts only as far as it fills the caches.

Prints a markdown table and writes benchmarks/results/depth-speed.json.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from modicum import zoo
from modicum.evaluate import environment
from modicum.models import Anatomy
from modicum.models.depth import keep_blocks
from modicum.models.dit import DiT, DiTConfig, load_dit

RESULTS = Path(__file__).parent / "results" / "depth-speed.json"
SHAPE = DiTConfig(input_size=32, patch_size=4, hidden_size=384, depth=12, num_heads=6)
BATCH = 16


@dataclass(frozen=True)
class Row:
    """What was measured of one model in one type.

    Attributes:
        seconds: of the dense model for a batch, median.
        ratios: how many times as fast the pruned model was, round by round.
        multiplications: of the dense model over those of the pruned one.
    """

    model: str
    dtype: str
    steps: int
    seconds: float
    ratios: tuple[float, ...]
    multiplications: float


def halves(model: DiT, again: DiT) -> tuple[DiT, DiT]:
    """A model, and its twin without every second block."""
    keep_blocks(Anatomy.of(again), list(range(0, again.config.depth, 2)))
    return model, again


def seconds(model: DiT, steps: int) -> float:
    """Of one thread, to draw one batch."""
    begin = time.process_time()
    model.generate(list(range(BATCH // 2)), count=2, cfg=1.0, steps=steps, sampler="ddim", seed=0)
    return time.process_time() - begin


@torch.no_grad()
def measure(name: str, pair: tuple[DiT, DiT], dtype: torch.dtype, steps: int, rounds: int) -> Row:
    """Both models in turns."""
    dense, pruned = (model.eval().to(dtype) for model in pair)
    for model in (dense, pruned):
        seconds(model, 1)
    times: list[tuple[float, float]] = []
    for turn in range(rounds):
        if turn % 2:
            fast = seconds(pruned, steps)
            times.append((seconds(dense, steps), fast))
        else:
            slow = seconds(dense, steps)
            times.append((slow, seconds(pruned, steps)))
    share = dense.config.macs() / pruned.config.macs()
    ratios = tuple(slow / fast for slow, fast in times)
    word = str(dtype).removeprefix("torch.")
    return Row(name, word, steps, median(slow for slow, _ in times), ratios, share)


def main() -> None:
    """Measure both models in both types."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="in float32")
    parser.add_argument("--half-rounds", type=int, default=2, help="in bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    print("| model | type | seconds, dense | times as fast | by multiplications |\n|---|---|---:|---:|---:|")
    nano = zoo.path("nano-dit")
    for dtype, rounds in ((torch.float32, options.rounds), (torch.bfloat16, options.half_rounds)):
        for name, pair, steps in (
            ("nano-dit", halves(load_dit(nano), load_dit(nano)), 5),
            ("DiT-S/4 shape", halves(DiT(SHAPE), DiT(SHAPE)), 1),
        ):
            row = measure(name, pair, dtype, steps, rounds)
            rows.append(row)
            spread = f"{median(row.ratios):.2f} ({min(row.ratios):.2f}–{max(row.ratios):.2f})"
            print(
                f"| {name} | {row.dtype} | {row.seconds:.2f} | {spread} | {row.multiplications:.2f} |",
                flush=True,
            )
            facts = {"rows": [asdict(each) for each in rows], "options": vars(options)}
            RESULTS.write_text(json.dumps({**facts, "environment": environment()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
