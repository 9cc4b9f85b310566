"""Rotary positions in two dimensions, one frame of coordinates for all maps (Heo et al., arXiv 2403.13298).

Channels 2i and 2i + 1 of a query or key are a point in the plane, turned by an angle. The first half of the pairs is
turned by the token's row, the second half by its column, each at frequencies 10000^(-2m / (d/2)). A map of h x w
tokens is spread over the frame (Hf, Wf): token (r, c) stands at (round(r Hf/h), round(c Wf/w)). So tokens of all maps
that show the same place of the image stand near each other, and a query meets a key at the difference of their places.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from modicum.models.infinity.schedules import Resolution

BASE = 10000.0


def coordinates(resolution: Resolution) -> Tensor:
    """Places of all tokens in the frame, int64 `[L, 2]` (row, column); halves are rounded to even."""
    rows, columns = resolution.frame
    places = []
    for height, width in resolution.schedule.sizes:
        row = (torch.arange(height) * (rows / height)).round()
        column = (torch.arange(width) * (columns / width)).round()
        places.append(torch.cartesian_prod(row, column).view(-1, 2))
    return torch.cat(places).long()


def rotary_table(resolution: Resolution, head_dim: int, device: torch.device) -> Tensor:
    """Cosines and sines of all tokens, float32 `[2, L, head_dim / 2]`.

    Args:
        resolution: maps and frame.
        head_dim: channels of a head, a multiple of 4.
        device: where to put it.
    """
    half = head_dim // 2
    frequencies = 1 / BASE ** (torch.arange(0, half, 2).float() / half)  # [d/4]
    angles = (coordinates(resolution)[..., None] * frequencies).flatten(1)  # [L, d/2]: rows, then columns
    return torch.stack((angles.cos(), angles.sin())).to(device)


def rotation(table: Tensor) -> Callable[[Tensor], Tensor]:
    """What turns queries or keys `[R, H, L, d]`; computes in float32.

    Args:
        table: of `rotary_table`, of the same L tokens.
    """
    cosine, sine = table

    def rotate(x: Tensor) -> Tensor:
        first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # [R, H, L, d/2] each
        turned = (cosine * first - sine * second, sine * first + cosine * second)
        return torch.stack(turned, dim=-1).flatten(-2)

    return rotate
