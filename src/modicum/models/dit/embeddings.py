"""What a diffusion transformer knows beside the picture: where a token is, what time it is, which class is asked for.

    positions   half of the channels encode the column, half the row; each half is [sin, cos] of
                position * 10000^(-2 i / width)
    time        [cos(t f_k), sin(t f_k)], f_k = 10000^(-k / 128), k = 0 .. 127, through a small network
    class       a row of a table; its last row stands for "no label"

The constants matter: a model trained with f_k = 10000^(-k / 127), as diffusers builds it by default, is another
model.
"""

from __future__ import annotations

import functools
import math
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from modicum.models.dit.config import TIME_FEATURES

LONGEST_PERIOD = 10_000


@functools.lru_cache(maxsize=8)
def _position_table(width: int, side: int) -> np.ndarray:
    """float64 `[side^2, width]`, rows of the grid first."""
    quarter = width // 4
    frequencies = LONGEST_PERIOD ** -(np.arange(quarter, dtype=np.float64) / quarter)
    angles = np.arange(side, dtype=np.float64)[:, None] * frequencies  # [side, width / 4]
    line = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # [side, width / 2]
    return np.concatenate([np.tile(line, (side, 1)), np.repeat(line, side, axis=0)], axis=1)


def positions(width: int, side: int) -> Tensor:
    """The sin-cos position table, float32 `[1, side^2, width]`: column half first, then row half."""
    return torch.from_numpy(_position_table(width, side)).float()[None]


def time_features(t: Tensor, features: int = TIME_FEATURES) -> Tensor:
    """Cosines, then sines of times `[B]`, whole or fractional: float32 `[B, features]`."""
    half = features // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t[:, None].float() * torch.exp(-math.log(LONGEST_PERIOD) * exponents)  # [B, half]
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class TimeEmbedder(nn.Module):
    """Times to vectors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """`[B] -> [B, width]`."""
        first = cast(nn.Linear, self.mlp[0])
        return self.mlp(time_features(t).to(first.weight.dtype))


class LabelEmbedder(nn.Module):
    """Labels to vectors; the last row of the table stands for "no label", if labels were dropped in training.

    Args:
        classes: number of labels.
        width: channels.
        dropout: share of labels that `drop` removes.
    """

    def __init__(self, classes: int, width: int, dropout: float) -> None:
        super().__init__()
        self.classes, self.dropout = classes, dropout
        self.embedding_table = nn.Embedding(classes + (dropout > 0), width)

    def forward(self, labels: Tensor) -> Tensor:
        """int64 `[B] -> [B, width]`."""
        return self.embedding_table(labels)

    def dropped(self, labels: Tensor) -> Tensor:
        """Which labels a training step does without, bool `[B]`: each with probability `dropout`."""
        return torch.rand(labels.shape, device=labels.device) < self.dropout

    def without(self, labels: Tensor, dropped: Tensor) -> Tensor:
        """`labels` with "no label" where `dropped` (bool or 0/1 `[B]`)."""
        return torch.where(dropped.bool(), self.classes, labels)
