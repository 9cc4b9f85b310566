"""Canny's edges: one pixel wide, and only those that hang together with a strong one (Canny, IEEE PAMI 1986).

    smooth -> gradient -> keep the crest of every slope -> keep what is strong, and what is weak but touches it

The frame of the sensor is dark and fades towards the corners, so its grey levels are spread evenly first (histogram
equalisation); otherwise skies and corners come out empty.

Legend: frames [B, 1, H, W] in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = 256
_NEIGHBOURS = ((0, 1), (1, 1), (1, 0), (1, -1))  # (rows, columns) at 0, 45, 90 and 135 degrees


def equalised(frames: Tensor) -> Tensor:
    """Frames whose grey levels are about equally frequent, each by itself."""
    levels = (frames.flatten(1) * (LEVELS - 1)).round().long().clamp(0, LEVELS - 1)
    counts = torch.zeros(len(frames), LEVELS, device=frames.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels, dtype=counts.dtype))
    share = counts.cumsum(1) / levels.shape[1]
    return share.gather(1, levels).view_as(frames)


def canny(frames: Tensor, low: float = 0.1, high: float = 0.2) -> Tensor:
    """Edges of frames, bool `[B, 1, H, W]`.

    Args:
        frames: equalised.
        low: change across two pixels from which on an edge may be one.
        high: from which on it is one; both are about the 100 and 200 of OpenCV.
    """
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=frames.device) / 16
    smooth = F.pad(frames, (3, 3, 3, 3), mode="replicate")
    smooth = F.conv2d(
        F.conv2d(smooth, kernel.view(1, 1, 1, 5)), kernel.view(1, 1, 5, 1)
    )  # [B, 1, H + 2, W + 2]
    difference, mean = torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 1.0]) / 4
    kernels = torch.stack((torch.outer(mean, difference), torch.outer(difference, mean)))[:, None]
    x, y = F.conv2d(smooth, kernels.to(frames)).split(1, dim=1)
    slope = torch.hypot(x, y)
    crest = slope * _is_crest(slope, torch.atan2(y, x))
    return _connected(crest >= high, crest >= low)


def _is_crest(slope: Tensor, angle: Tensor) -> Tensor:
    """Whether no neighbour across the edge is steeper, bool `[B, 1, H, W]`."""
    height, width = slope.shape[-2:]
    padded, sector = F.pad(slope, (1, 1, 1, 1)), (angle / (torch.pi / 4)).round().long() % 4

    def shifted(rows: int, columns: int) -> Tensor:
        return padded[..., 1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    ahead = torch.stack([shifted(r, c) for r, c in _NEIGHBOURS]).gather(0, sector[None])[0]
    behind = torch.stack([shifted(-r, -c) for r, c in _NEIGHBOURS]).gather(0, sector[None])[0]
    return (slope >= ahead) & (slope > behind)


def _connected(strong: Tensor, weak: Tensor) -> Tensor:
    """The weak places from which a path over weak places leads to a strong one."""
    for _ in range(strong.shape[-2] * strong.shape[-1]):
        grown = weak & (F.max_pool2d(strong.float(), 3, stride=1, padding=1) > 0)
        if torch.equal(grown, strong):
            break
        strong = grown
    return strong
