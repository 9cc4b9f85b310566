"""Do step caches gain anything in PixelGen's sampler, which takes two to four steps?

    python benchmarks/pixelgen_step_caches.py --images HELD-OUT.npz

modicum's caches run in the blocks of the generator's network, one cache for each picture, and are held against plain
painting with fewer steps. Branches are the attention and feed-forward layers that were computed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modicum.apps.pixelgen.generator import Generator
from modicum.apps.pixelgen.generator.colour import luma
from modicum.apps.pixelgen.generator.images import load_pictures
from modicum.apps.pixelgen.generator.measure import processor_seconds
from modicum.apps.pixelgen.generator.scene import scene_tokens
from modicum.apps.pixelgen.prompt import SensorTokens
from modicum.diffusion.first_block_cache import FirstBlockCache
from modicum.diffusion.fora import FORA
from modicum.diffusion.step_cache import StepMethod, Tally
from modicum.diffusion.taylorseer import TaylorSeer
from modicum.evaluate import environment
from modicum.evaluate.images import psnr

RESULTS = Path(__file__).parent / "results" / "pixelgen_step_caches.json"
HEIGHT, WIDTH, AT_ONCE = 96, 128, 50
METHODS: list[StepMethod | None] = [
    None,
    FORA(interval=2),
    FORA(interval=3),
    TaylorSeer(interval=2, order=1),
    FirstBlockCache(tau=0.05),
    FirstBlockCache(tau=0.2),
]


def painted(
    generator: Generator, method: StepMethod | None, steps: int, *asked: Tensor
) -> tuple[Tensor, Tally]:
    """Pictures, with what was computed for them."""
    network, tally = generator.network, Tally()
    if method is None:
        return generator.generate(*asked, steps=steps), tally
    cache = method.cache(steps)

    def forward(x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        c = network.condition(t, tokens)
        return network.head(cache.run(list(network.blocks), network.embed(x), c, tally), c)

    network.forward = forward  # type: ignore[assignment]
    try:
        return generator.generate(*asked, steps=steps), tally
    finally:
        del network.forward


def row(generator: Generator, method: StepMethod | None, steps: int, pictures: Tensor) -> dict[str, Any]:
    """Quality and cost of one way to paint."""
    found = []
    for part in pictures.split(AT_ONCE):  # a pass of the network holds all tiles, as a cache demands
        whole = torch.ones(len(part), 1, *part.shape[2:], dtype=torch.bool)
        colours, tally = painted(generator, method, steps, luma(part), whole, scene_tokens(part))
        found.append(colours)
    frames = torch.rand(1, 1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    told = torch.ones(1, len(SensorTokens.sizes), dtype=torch.int64)
    frame = (frames, torch.ones_like(frames, dtype=torch.bool), told)
    seconds = processor_seconds(lambda: painted(generator, method, steps, *frame), times=15)
    return {
        "method": "plain" if method is None else f"{method.name} {method.settings()}",
        "steps": steps,
        "branches": tally.evaluated / tally.of if tally.of else 1.0,
        "psnr": psnr(torch.cat(found), pictures),
        "milliseconds": 1000 * seconds,
    }


def main() -> None:
    """Measure all methods at 2, 3 and 4 steps."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--generator", default="pixelgen-nano-small")
    parser.add_argument("--images", type=Path, required=True, help="held-out pictures: .npz or a folder")
    parser.add_argument("--count", type=int, default=1000)
    options = parser.parse_args()
    generator = Generator.load(options.generator)
    pictures = load_pictures(options.images)[: options.count] / 255
    rows = [row(generator, None, 1, pictures)]
    rows += [row(generator, method, steps, pictures) for steps in (2, 3, 4) for method in METHODS]
    RESULTS.write_text(json.dumps({"rows": rows, "environment": environment()}, indent=2) + "\n")
    for found in rows:
        print(
            f"| {found['method']} | {found['steps']} | {found['branches']:.2f} | {found['psnr']:.3f} | "
            f"{found['milliseconds']:.1f} |"
        )


if __name__ == "__main__":
    main()
