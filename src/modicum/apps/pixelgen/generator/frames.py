"""What arrived of a frame, made ready for a network: gaps filled in roughly, edges drawn.

A lost pixel gets the mean of the pixels that arrived around it, in the smallest window (3x3, 5x5, 9x9, ...) that holds
one. The network sees this guess together with the mask, and paints what is missing as a difference from it.

Legend: frames [B, 1, H, W] in [0, 1]; masks bool [B, 1, H, W], True where a pixel arrived.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

GREY = 0.5  # of a frame of which nothing arrived
_EDGE_GAIN = 0.5  # brings the steepest usual edges near 1


def conceal(frames: Tensor, mask: Tensor) -> Tensor:
    """Frames without gaps: lost pixels become means of their neighbours that arrived, `[B, 1, H, W]`."""
    weights = mask.to(frames.dtype)
    known, missing = frames * weights, ~mask
    filled = torch.where(mask, frames, GREY)
    reach = 1
    while reach < 2 * max(frames.shape[-2:]) and bool(missing.any()):
        total, count = _window_mean(known, reach), _window_mean(weights, reach)
        found = missing & (count > 0)
        filled = torch.where(found, total / count.clamp_min(1e-12), filled)
        missing = missing & ~found
        reach *= 2
    return filled


def _window_mean(values: Tensor, reach: int) -> Tensor:
    """Mean over windows of 2 reach + 1 pixels, with zeros beyond the border."""
    rows, columns = (min(reach, length - 1) for length in values.shape[-2:])
    across = F.avg_pool2d(values, (1, 2 * columns + 1), stride=1, padding=(0, columns))
    return F.avg_pool2d(across, (2 * rows + 1, 1), stride=1, padding=(rows, 0))


def edges(frames: Tensor) -> Tensor:
    """Steepness at every pixel (Sobel), about [0, 1]: `[B, 1, H, W]`."""
    slope = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=frames.device)
    kernels = torch.stack((slope, slope.T))[:, None].to(frames.dtype)  # [2, 1, 3, 3]
    gradient = F.conv2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), kernels)
    return _EDGE_GAIN * gradient.square().sum(1, keepdim=True).sqrt()
