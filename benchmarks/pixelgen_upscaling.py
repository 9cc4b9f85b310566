"""What PixelGen's last stage is worth: colours at full size, and lost luma, beside the simple ways.

    python benchmarks/pixelgen_upscaling.py --images HELD-OUT.npz [--train FILE.npz --seconds 60]

Small colours, at a half and a quarter of the size, are laid under the luma of the full size: the true ones, and those
that the generator paints there, plain and with doubled guidance as the viewer does. 20 % of the luma is lost in single
pixels, in runs of 24 and in whole rows. With --train, networks of several kinds and sizes are trained for the same
processor seconds each and measured in the same way: which of them is worth its bytes and milliseconds?
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.apps.pixelgen.generator import Generator, GeneratorConfig, PixelNetwork
from modicum.apps.pixelgen.generator.colour import chroma, colours, luma
from modicum.apps.pixelgen.generator.enlarge import enlarged, reduced
from modicum.apps.pixelgen.generator.frames import conceal
from modicum.apps.pixelgen.generator.images import Pictures, load_pictures
from modicum.apps.pixelgen.generator.measure import lost_packets, processor_seconds
from modicum.apps.pixelgen.generator.scene import scene_tokens
from modicum.apps.pixelgen.generator.train_upscaler import BATCH, LR, Upscaling
from modicum.apps.pixelgen.generator.upscale import READ, TOLD, WRITTEN, Upscaler, interpolated
from modicum.apps.pixelgen.prompt import SensorTokens
from modicum.evaluate import environment
from modicum.evaluate.images import psnr
from modicum.trainer import Moment

RESULTS = Path(__file__).parent / "results" / "pixelgen_upscaling.json"
SCALES, LOSSES = (2, 4), {"single pixels": 1, "runs of 24": 24, "whole rows": 32}
FRAME, REDUCED = (324, 244), 4  # a frame of the node, and how it is painted
Way = Callable[[Tensor, Tensor, Tensor, int, bool], Tensor]


class Attending(Upscaler):
    """The same questions answered by a small DiT, one token for every patch of 2x2 cells."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__(1, 0)
        del self.enter, self.body, self.leave
        config = GeneratorConfig(
            in_channels=4 * READ + TOLD, hidden_size=width, depth=depth, num_heads=2, patch_size=2
        )
        self.network = PixelNetwork(config)
        self.network.final_layer.linear = nn.Linear(width, 16 * WRITTEN)
        nn.init.zeros_(self.network.final_layer.linear.weight)

    def answer(self, x: Tensor) -> Tensor:
        """As of the convolutions, in a single step; told nothing of readings."""
        count = len(x)
        told = torch.zeros(count, len(SensorTokens.sizes), dtype=torch.int64)
        return self.network(x, torch.ones(count), told, torch.zeros(count))


def bilinear(small: Tensor, frames: Tensor, mask: Tensor, k: int, painted: bool) -> Tensor:
    """What generators without a last stage do."""
    return enlarged(small, frames, mask, k)


def bicubic(small: Tensor, frames: Tensor, mask: Tensor, k: int, painted: bool) -> Tensor:
    """Measured luma, and bicubic chroma."""
    c = F.interpolate(chroma(small), scale_factor=k, mode="bicubic")
    return colours(conceal(frames, mask), c)


def simple(small: Tensor, frames: Tensor, mask: Tensor, k: int, painted: bool) -> Tensor:
    """Where the network begins: bicubic chroma with the mean of every cell kept."""
    return colours(*interpolated(small, frames, mask, k))


@torch.no_grad()
def quality(generator: Generator, ways: dict[str, Way], pictures: Tensor) -> dict[str, Any]:
    """PSNR of the colours by scale, source of the small colours and way; of lost luma by kind of loss and way."""
    frames, tokens = luma(pictures), scene_tokens(pictures)
    whole = torch.ones_like(frames, dtype=torch.bool)
    found: dict[str, Any] = {"colours": {}, "lost luma": {}}
    for k in SCALES:
        seen = reduced(frames, whole, k)
        sources = {
            "true": F.avg_pool2d(pictures, k),
            "painted": generator.generate(*seen, tokens),
            "painted, guidance 2": generator.generate(*seen, tokens, guidance=2.0),
        }
        for source, small in sources.items():
            scores = {
                way: psnr(run(small, frames, whole, k, source != "true"), pictures)
                for way, run in ways.items()
            }
            found["colours"][f"{k}x, {source}"] = scores
    for kind, length in LOSSES.items():
        mask = lost_packets(len(pictures), pictures.shape[-1], 0.2, length, seed=1)
        painted = generator.generate(frames * mask, mask, tokens)
        rows = {"mean of neighbours": conceal(frames * mask, mask), "painted": luma(painted)}
        rows |= {
            way: luma(run(painted, frames * mask, mask, 1, True))
            for way, run in ways.items()
            if isinstance(run, Upscaler)
        }
        found["lost luma"][kind] = {
            way: -10 * (y - frames)[~mask].double().square().mean().log10().item() for way, y in rows.items()
        }
    return found


def cost(way: Way) -> float:
    """Processor milliseconds for one frame of the node; a DiT gets it as so many pictures of 32x32."""
    torch.manual_seed(0)
    shape = (-(-FRAME[0] * FRAME[1] // 32**2), 1, 32, 32) if isinstance(way, Attending) else (1, 1, *FRAME)
    frames = torch.rand(shape)
    mask = torch.rand_like(frames) > 0.2
    small = F.avg_pool2d(frames, REDUCED, ceil_mode=True).expand(-1, 3, -1, -1)
    with torch.no_grad():
        return 1000 * processor_seconds(lambda: way(small, frames, mask, REDUCED, True))


def trained(network: Upscaler, generator: Generator, pictures: Tensor, seconds: float) -> Upscaler:
    """`network` after so many processor seconds of training."""
    objective, batches = Upscaling(generator), Pictures(pictures).batches(BATCH, 0)
    optimizer = torch.optim.AdamW(network.parameters(), LR, weight_decay=0.0)
    began, step, share = time.process_time(), 0, 0.0
    while share < 1:
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1, (step + 1) / 100) * (1 - share)
        loss = objective(network, batches(step), Moment(step, step + 1, torch.Generator().manual_seed(step)))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step, share = step + 1, (time.process_time() - began) / seconds
    return network.eval()


def contenders(generator: Generator, pictures: Tensor, held_out: Tensor, seconds: float) -> dict[str, Any]:
    """What networks of several kinds reach in the same time."""
    kinds: dict[str, Callable[[], Upscaler]] = {
        "convolutions, width 8": lambda: Upscaler(8),
        "convolutions, width 16": lambda: Upscaler(16),
        "convolutions, width 32": lambda: Upscaler(32),
        "DiT, width 64, 2 blocks": lambda: Attending(64, 2),
    }
    found = {}
    for name, make in kinds.items():
        torch.manual_seed(0)
        network = trained(make(), generator, pictures, seconds)
        size = sum(p.numel() for p in network.parameters() if p.requires_grad)
        milliseconds = cost(network)
        scores = quality(generator, {"learned": network}, held_out)
        found[name] = {"parameters": size, "milliseconds": milliseconds, **scores}
        print(f"{name}: {size:,} parameters, {milliseconds} ms, {scores}", flush=True)
    return found


def table(scores: dict[str, dict[str, float]]) -> str:
    """Rows of scores as a Markdown table."""
    ways = list(next(iter(scores.values())))
    lines = [f"| | {' | '.join(ways)} |", "|---|" + "---:|" * len(ways)]
    lines += [f"| {row} | {' | '.join(f'{of[way]:.3f}' for way in ways)} |" for row, of in scores.items()]
    return "\n".join(lines)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--generator", default="pixelgen-nano-small")
    parser.add_argument("--images", type=Path, required=True, help="held-out pictures: .npz or a folder")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--train", type=Path, help="pictures that contenders are trained on")
    parser.add_argument("--seconds", type=float, default=60, help="that each of them is trained for")
    options = parser.parse_args()
    opened = Generator.load(options.generator)
    upscaler, opened.upscaler = opened.upscaler, None
    assert upscaler is not None
    held_out = load_pictures(options.images)[: options.count] / 255
    ways: dict[str, Way] = {
        "bilinear": bilinear,
        "bicubic": bicubic,
        "kept means": simple,
        "learned": upscaler,
    }
    found: dict[str, Any] = {"environment": environment(), "pictures": len(held_out)}
    found |= {
        **quality(opened, ways, held_out),
        "milliseconds": {name: cost(way) for name, way in ways.items()},
    }
    print(table(found["colours"]), table(found["lost luma"]), found["milliseconds"], sep="\n\n", flush=True)
    if options.train:
        pictures = load_pictures(options.train)
        found["contenders"] = contenders(opened, pictures, held_out, options.seconds)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
