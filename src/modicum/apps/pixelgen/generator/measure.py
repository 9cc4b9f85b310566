"""How good painted pictures are: against the true colours, and against painting nothing.

Two baselines need no network: the grey frame itself, and the frame tinted with the mean colour of a photograph. With
packets lost, the baseline is a frame whose gaps are filled from their neighbours.

Tokens say something about the true picture (see `scene`), as the sensors of a node do. What a picture is worth without
them, and with those of another picture, is measured too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from modicum.apps.pixelgen.generator.colour import colours, luma
from modicum.apps.pixelgen.generator.frames import conceal
from modicum.apps.pixelgen.generator.model import Generator
from modicum.apps.pixelgen.generator.scene import scene_tokens
from modicum.evaluate.images import psnr, ssim

MEAN_CHROMA = (-0.022, 0.009)  # of photographs of things: a little yellow
Scores = dict[str, float]


def scores(painted: Tensor, pictures: Tensor, mask: Tensor) -> Scores:
    """PSNR of the colours, of the luma where it arrived and where it did not, in decibel; SSIM of the colours."""
    error = (luma(painted) - luma(pictures)).double().square()
    found = {"psnr": psnr(painted, pictures), "ssim": ssim(painted, pictures).mean().item()}
    for name, where in (("luma_arrived", mask), ("luma_lost", ~mask)):
        if bool(where.any()):
            found[name] = -10 * error[where].mean().clamp_min(1e-12).log10().item()
    return found


def lost_packets(count: int, side: int, loss: float, run: int, seed: int) -> Tensor:
    """Masks of frames of which a share of `loss` of all runs of `run` pixels is missing, bool `[n, 1, side, side]`."""
    generator = torch.Generator().manual_seed(seed)
    runs = torch.rand(count, -(-(side**2) // run), generator=generator) >= loss
    return runs.repeat_interleave(run, 1)[:, : side**2].reshape(count, 1, side, side)


def baselines(pictures: Tensor, mask: Tensor) -> dict[str, Scores]:
    """Scores of the concealed frame in grey, and in the mean colour."""
    y = conceal(luma(pictures), mask)
    tint = torch.tensor(MEAN_CHROMA).view(1, 2, 1, 1).expand(len(y), 2, *y.shape[2:])
    return {
        "grey": scores(y.expand(-1, 3, -1, -1), pictures, mask),
        "mean_colour": scores(colours(y, tint), pictures, mask),
    }


def quality(generator: Generator, pictures: Tensor, **painting: Any) -> dict[str, Any]:
    """Scores of a generator on pictures `[n, 3, side, side]` in [0, 1] that it has not seen.

    Args:
        generator: to measure.
        pictures: the truth.
        **painting: settings of `Generator.generate`.
    """
    count, side = len(pictures), pictures.shape[-1]
    whole = torch.ones(count, 1, side, side, dtype=torch.bool)
    tokens = scene_tokens(pictures)

    def painted(mask: Tensor, told: Tensor) -> Scores:
        return scores(generator.generate(luma(pictures) * mask, mask, told, **painting), pictures, mask)

    found: dict[str, Any] = {
        "pictures": count,
        **painting,
        "known": painted(whole, tokens),
        "unknown": painted(whole, torch.zeros_like(tokens)),
        "shuffled": painted(whole, tokens.roll(1, 0)),
        **baselines(pictures, whole),
    }
    for name, run in (("scattered", 1), ("stripes", 24)):
        mask = lost_packets(count, side, 0.2, run, seed=1)
        found[f"lost_{name}"] = {"known": painted(mask, tokens), **baselines(pictures, mask)}
    return found


def frames_per_second(paint: Callable[[], Any], seconds: float = 3.0) -> float:
    """How often `paint` runs in a second: the best of what fits into `seconds`, after one run to warm up."""
    paint()
    took: list[float] = []
    end = time.perf_counter() + seconds
    while not took or time.perf_counter() < end:
        began = time.perf_counter()
        paint()
        took.append(time.perf_counter() - began)
    return 1 / min(took)


def processor_seconds(paint: Callable[[], Any], times: int = 5) -> float:
    """What one run of `paint` costs on one thread: the least of several; neighbours on the machine do not count."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        took: list[float] = []
        for _ in range(times):
            began = time.process_time()
            paint()
            took.append(time.process_time() - began)
        return min(took)
    finally:
        torch.set_num_threads(threads)
