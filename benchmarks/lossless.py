"""Lossless codes of weights on a processor: how many bits are left, and how fast they come back.

Gaussian weights (standard deviation 0.02), whose exponents are spread like those of a trained matrix. All codecs take
turns on the same tensor, and the best of several tries counts. On a busy machine seconds mean little, so what counts is
the ratio to Zstandard (level 3, one thread, the weights as they lie in memory) in the same run, of the processor time
that the thread itself got.

How much sooner two threads are done depends on the machine as well. So a copy of the weights, which waits for memory,
and a hash of them, which only computes, are done by one thread and by two in the same turns: they show what the second
core gives at that moment. For the least time of many tries a machine need be idle for some milliseconds only.

    python benchmarks/lossless.py [--weights 4194304] [--tries 7] [--scaling]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import zstandard
from processes import write_results
from torch import Tensor

from modicum.kernels.byteplanes import LEVEL, compress_planes, decompress_planes
from modicum.kernels.huffman.code import entropy, payload_bits
from modicum.kernels.huffman.decoder import decode
from modicum.kernels.huffman.encoder import encode, symbol_counts
from modicum.kernels.huffman.layout import DTYPES, prepare

Work = Callable[[], object]


def gaussian(n: int, dtype: torch.dtype) -> Tensor:
    """Weights of standard deviation 0.02."""
    return (torch.randn(n, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)


def sizes(n: int, dtype: torch.dtype) -> dict[str, float]:
    """Bits per weight of every codec."""
    weight = gaussian(n, dtype)
    counts, group = symbol_counts([weight]), encode([weight])
    assert group is not None
    assert torch.equal(decode(prepare(group)).view(torch.uint8), weight.view(torch.uint8))
    alone = zstandard.ZstdCompressor(level=LEVEL).compress(weight.view(torch.uint8).numpy().tobytes())
    return {
        "raw": 8.0 * dtype.itemsize,
        "all": 8 * group.nbytes / n,
        "payload": payload_bits(prepare(group).code, counts) / n,
        "entropy": entropy(counts),
        "planes": 8 * sum(map(len, compress_planes(weight))) / n,
        "zstandard": 8 * len(alone) / n,
    }


def best_of(works: dict[str, Work], tries: int, clock: Callable[[], float]) -> dict[str, float]:
    """Least seconds of every work, all taking turns."""
    seconds = dict.fromkeys(works, float("inf"))
    for _ in range(tries):
        for name, work in works.items():
            started = clock()
            work()
            seconds[name] = min(seconds[name], clock() - started)
    return seconds


def speeds(n: int, tries: int) -> dict[str, float]:
    """GB of bfloat16 per second of one core."""
    weight = gaussian(n, torch.bfloat16)
    data, out, group = weight.view(torch.uint8).numpy().tobytes(), torch.empty_like(weight), encode([weight])
    assert group is not None
    prepared, planes = prepare(group), compress_planes(weight)
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    frame = compressor.compress(data)
    works: dict[str, Work] = {
        "zstandard compress": lambda: compressor.compress(data),
        "zstandard decompress": lambda: zstandard.ZstdDecompressor().decompress(frame),
        "planes compress": lambda: compress_planes(weight),
        "planes decompress": lambda: decompress_planes(planes, weight.shape, weight.dtype),
        "encode": lambda: encode([weight]),
        "decode": lambda: decode(prepared, out),
    }
    return {name: weight.nbytes / s / 1e9 for name, s in best_of(works, tries, time.thread_time).items()}


def scaling(n: int, tries: int) -> dict[str, float]:
    """How much sooner two threads are done than one: with decoding, with a copy, and with a hash of the weights."""
    weight = gaussian(n, torch.bfloat16)
    group = encode([weight])
    assert group is not None
    prepared, out = prepare(group), torch.empty_like(weight)
    halves = list(zip(weight.chunk(2), out.chunk(2), strict=True))
    hashed = [memoryview(part.view(torch.uint8).numpy()) for part, _ in halves]
    with ThreadPoolExecutor(2) as pool:
        works: dict[str, Work] = {
            "decode 1": partial(decode, prepared, out),
            "decode 2": partial(decode, prepared, out, threads=2),
            "copy 1": lambda: [into.copy_(part) for part, into in halves],
            "copy 2": lambda: list(pool.map(lambda half: half[1].copy_(half[0]), halves)),
            "hash 1": lambda: [hashlib.sha256(part).digest() for part in hashed],
            "hash 2": lambda: list(pool.map(lambda part: hashlib.sha256(part).digest(), hashed)),
        }
        wall = best_of(works, tries, time.perf_counter)
    return {name: wall[f"{name} 1"] / wall[f"{name} 2"] for name in ("decode", "copy", "hash")}


def main() -> None:
    """Measure, print, and keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--weights", type=int, default=1 << 22)
    parser.add_argument("--tries", type=int, default=7)
    parser.add_argument("--scaling", action="store_true", help="only this: two threads beside one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    content: dict[str, Any] = {"weights": options.weights, "load": os.getloadavg()[0]}
    if not options.scaling:
        content |= {"bits": _bits(options.weights), "speeds": _speeds(options.weights, options.tries)}
    content["two_threads"] = scaling(options.weights, 10 * options.tries)
    words = ", ".join(f"{name} x {ratio:.2f}" for name, ratio in content["two_threads"].items())
    print(f"  two threads, load {content['load']:.1f}: {words}")
    print(write_results("lossless", content, Path(__file__).parent / "results"))


def _bits(weights: int) -> dict[str, dict[str, float]]:
    """The table of sizes, printed."""
    bits = {str(dtype).removeprefix("torch."): sizes(weights, dtype) for dtype in DTYPES}
    print("bits per weight: " + ", ".join(next(iter(bits.values()))))
    for dtype, row in bits.items():
        print(f"  {dtype:9s}" + "".join(f"{value:9.3f}" for value in row.values()))
    return bits


def _speeds(weights: int, tries: int) -> dict[str, float]:
    """The table of speeds, printed."""
    rates = speeds(weights, tries)
    for name, rate in rates.items():
        other = rates[f"zstandard {'de' if 'decod' in name or 'decom' in name else ''}compress"]
        print(f"  {name:21s}{rate:7.3f} GB/s  x {rate / other:.2f}")
    return rates


if __name__ == "__main__":
    main()
