"""Frames larger than the network: painted tile by tile, in agreement.

The state of the whole frame is kept in one piece. At every step of the diffusion the network says the velocity of
overlapping tiles, and where tiles overlap the velocities are averaged, weighted towards the middle of each tile
(MultiDiffusion, Bar-Tal et al., ICML 2023, arXiv 2302.08113). Neighbours thus agree while they are painted, instead of
being glued together afterwards, and noise belongs to the frame, not to the tile.

Legend: canvas [B, C, h, w]; n = rows * columns of tiles; tiles [B * n, C, side, side], all tiles of a frame together.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Tiles:
    """Where the tiles lie, spread evenly from border to border.

    Args:
        height, width: of the canvas, at least `side`.
        side: of a tile.
        stride: at most so far apart, at most `side`.
    """

    def __init__(self, height: int, width: int, side: int, stride: int) -> None:
        self.height, self.width, self.side = height, width, side
        rows, columns = (
            _places(height, side, stride),
            _places(width, side, stride),
        )  # [rows, side], [columns, side]
        cells = rows[:, None, :, None] * width + columns[None, :, None, :]  # [rows, columns, side, side]
        self.cells = cells.flatten()
        ramp = torch.minimum(torch.arange(side) + 0.5, side - torch.arange(side) - 0.5)
        self.window = torch.outer(ramp, ramp)  # [side, side], largest in the middle
        self.count = len(rows) * len(columns)
        weight = self.window.flatten().repeat(self.count)
        self.total = torch.zeros(height * width).index_add_(0, self.cells, weight)

    def cut(self, canvas: Tensor) -> Tensor:
        """`[B, C, h, w] -> [B * n, C, side, side]`."""
        tiles = canvas.flatten(2)[:, :, self.cells.to(canvas.device)]
        return tiles.unflatten(2, (self.count, self.side, self.side)).transpose(1, 2).flatten(0, 1)

    def blend(self, tiles: Tensor) -> Tensor:
        """Weighted mean of the tiles over every place of the canvas: `[B * n, C, side, side] -> [B, C, h, w]`."""
        weighted = (tiles * self.window.to(tiles)).unflatten(0, (-1, self.count)).transpose(1, 2).flatten(2)
        total = weighted.new_zeros(*weighted.shape[:2], self.height * self.width)
        total.index_add_(2, self.cells.to(tiles.device), weighted)
        return (total / self.total.to(tiles)).unflatten(2, (self.height, self.width))


def _places(length: int, side: int, stride: int) -> Tensor:
    """The places that each tile covers along one axis, int64 `[tiles, side]`."""
    count = -(-(length - side) // stride) + 1
    first = torch.linspace(0, length - side, count).round().long()
    return first[:, None] + torch.arange(side)
