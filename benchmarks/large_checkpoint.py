"""Does the peak memory of a run stay below the size of the model? Compress `large` (4 GB) and look.

A run streams one block at a time, so its memory should be that of a few blocks and the calibration
activations.

    python benchmarks/checkpoints.py large
    python benchmarks/large_checkpoint.py --methods wanda gptq
"""

from __future__ import annotations

import argparse
import shutil
from functools import partial
from pathlib import Path

import commands
from against_llmcompressor import CACHE, checkpoint_path, size_on_disk, token_file
from processes import measure, write_results


def main() -> None:
    """Compress with each method once and print the peak beside the checkpoint's size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="large")
    parser.add_argument("--methods", nargs="+", choices=list(commands.CASES), default=["wanda", "gptq"])
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--source", default="stdlib", help="text source of the tokens")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--results", type=Path, default=commands.HERE / "results")
    options = parser.parse_args()
    options.cache = options.cache.expanduser().resolve()
    checkpoint = checkpoint_path(options.checkpoint, options.cache)
    tokens = token_file("calibration", checkpoint, options)
    floor = measure(commands.bare_command(commands.PYTHON), "imports")
    out = options.cache / "out" / f"{checkpoint.name}-alone"
    size = size_on_disk(checkpoint)
    runs = {}
    for name in options.methods:
        runs[name] = measure(
            commands.modicum_command(commands.CASES[name], checkpoint, tokens, out),
            f"{checkpoint.name} {name}",
            prepare=partial(shutil.rmtree, out, ignore_errors=True),
        )
        over = runs[name].peak_rss - floor.peak_rss
        print(
            f"{name}: checkpoint {size / 2**20:.0f} MiB, peak {runs[name].peak_rss / 2**20:.0f} MiB, "
            f"over imports {over / 2**20:.0f} MiB = {over / size:.2f} of the checkpoint",
            flush=True,
        )
    shutil.rmtree(out, ignore_errors=True)
    content = {"checkpoint_bytes": size, "floor": floor, "runs": runs}
    print(write_results("large-checkpoint", content, options.results))


if __name__ == "__main__":
    main()
