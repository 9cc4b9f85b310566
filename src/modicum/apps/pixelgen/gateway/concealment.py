"""Holes filled in from their neighbours: the plain way, and the baseline for every other one.

Round by round, every unknown pixel that touches a known one (8 neighbours) becomes the mean of the known ones it
touches. A round looks at the rim of the holes only, so that the work grows with their area, not with their depth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modicum.apps.pixelgen.modes import Bytes


def conceal(frame: Bytes, mask: NDArray[np.bool_]) -> Bytes:
    """The frame with its holes filled.

    Args:
        frame: uint8 `[H, W]`.
        mask: bool `[H, W]`, True where the frame is known.

    Returns:
        uint8 `[H, W]`, equal to `frame` where `mask` is True; 0 everywhere if nothing is known.
    """
    if mask.all() or not mask.any():
        return frame * mask
    known = np.pad(mask, 1).reshape(-1)
    values = np.pad(np.where(mask, frame, 0).astype(np.float32), 1).reshape(-1)
    width = frame.shape[1] + 2
    around = np.array([row * width + column for row in (-1, 0, 1) for column in (-1, 0, 1) if row or column])
    inside = np.pad(np.ones_like(mask), 1).reshape(-1)
    holes = np.flatnonzero(np.pad(~mask, 1))
    rim = holes[known[holes[:, None] + around].any(1)]
    while rim.size:
        neighbours = rim[:, None] + around  # [rim, 8]
        values[rim] = values[neighbours].sum(1) / known[neighbours].sum(1)  # unknown neighbours are zeros
        known[rim] = True
        near = np.unique(neighbours)
        rim = near[inside[near] & ~known[near]]
    picture = values.reshape(-1, width)[1:-1, 1:-1]
    return np.where(mask, frame, picture.round().astype(np.uint8))
