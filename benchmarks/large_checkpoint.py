"""Does the peak memory of a run stay below the size of the model? Compress `large` (4 GB) and look.

A run streams one block at a time, so its memory should be that of a few blocks and the calibration
activations; a lossless code needs no activations, but holds one group of weights and its codes.

    python benchmarks/checkpoints.py large
    python benchmarks/large_checkpoint.py --methods wanda gptq dfloat11
"""

from __future__ import annotations

import argparse
import shutil
from functools import partial
from pathlib import Path

import commands
from against_llmcompressor import CACHE, checkpoint_path, size_on_disk, token_file
from processes import measure, write_results

CASES = {
    **commands.CASES,
    "dfloat11": commands.Case("lossless.dfloat11", {}, "", {}),
    "byteplanes": commands.Case("lossless.byteplanes", {}, "", {}),
}
"""Those of the comparison, and methods that the peer lacks."""


def main() -> None:
    """Compress with each method once and print the peak beside the checkpoint's size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="large")
    parser.add_argument("--methods", nargs="+", choices=list(CASES), default=["wanda", "gptq"])
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--source", default="stdlib", help="text source of the tokens")
    parser.add_argument("--tries", type=int, default=4, help="runs to make before a noisy one is kept")
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
            commands.modicum_command(CASES[name], checkpoint, tokens, out),
            f"{checkpoint.name} {name}",
            options.tries,
            prepare=partial(shutil.rmtree, out, ignore_errors=True),
        )
        over = runs[name].peak_rss - floor.peak_rss
        print(
            f"{name}: checkpoint {size / 2**20:.0f} MiB, peak {runs[name].peak_rss / 2**20:.0f} MiB, "
            f"over imports {over / 2**20:.0f} MiB = {over / size:.2f} of the checkpoint, "
            f"anonymous {runs[name].peak_anonymous / 2**20:.0f} MiB",
            flush=True,
        )
    shutil.rmtree(out, ignore_errors=True)
    content = {"checkpoint_bytes": size, "floor": floor, "runs": runs}
    print(write_results("large-checkpoint", content, options.results))


if __name__ == "__main__":
    main()
