"""Gaps for training, as a radio makes them.

A lost packet is a run of consecutive pixels; interleaved, it is as many single ones. Both are runs of random length,
lost at a random rate. A tenth of the frames is lost altogether: there the readings alone decide, and the network learns
what night and day look like.
"""

from __future__ import annotations

import torch
from torch import Tensor

WHOLE, GONE = 0.3, 0.1  # share of frames that arrive complete, and not at all
SINGLE = 0.5  # share of the others that lose single pixels instead of runs
LONGEST, MOST = 128.0, 0.5  # run of pixels; share of runs that is lost


def arrived(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Random masks, bool `[count, 1, side, side]`, True where a pixel arrived."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=generator.device)

    kind, pixels = uniform(count, 1), torch.arange(side**2, device=generator.device)
    length = torch.where(uniform(count, 1) < SINGLE, 1.0, LONGEST ** uniform(count, 1))
    run = (pixels / length + uniform(count, 1)).long()  # which run a pixel belongs to, [count, pixels]
    rate = MOST * uniform(count, 1)
    rate = torch.where(kind < WHOLE, 0.0, torch.where(kind < WHOLE + GONE, 1.0, rate))
    lost = uniform(count, side**2 + 1).gather(1, run) < rate
    return ~lost.view(count, 1, side, side)
