"""Which weights go: exact counts of the lowest scores, ties broken by position.

A threshold alone removes one weight too many, or a whole plateau of equal scores. Here the count is exact
and the same scores always give the same mask: equal scores go in order of their index, lowest first. A
selection (linear time) finds the threshold and a running count hands out the ties; nothing is
sorted in full.

Masks are True where a weight is pruned. Scores must be free of NaN.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def prune_lowest(scores: Tensor, count: int) -> Tensor:
    """Mark the `count` lowest scores of every row.

    Args:
        scores: [rows, k], any real dtype.
        count: 0 to k.

    Returns:
        bool [rows, k], exactly `count` True per row.
    """
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if count >= scores.shape[1]:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = _kth_lowest(scores, count)  # [rows, 1]
    below, ties = scores < threshold, scores == threshold
    wanted = count - below.sum(1, keepdim=True)
    return below | (ties & (ties.cumsum(1, dtype=torch.int32) <= wanted))


def prune_lowest_global(scores: Tensor, count: int) -> Tensor:
    """Mark the `count` lowest scores of the whole matrix.

    Args:
        scores: [rows, k], any real dtype.
        count: 0 to rows * k.

    Returns:
        bool [rows, k], exactly `count` True.
    """
    return prune_lowest(scores.reshape(1, -1), count).view(scores.shape)


def semi_structured(scores: Tensor, n_kept: int, m: int) -> Tensor:
    """Mark the `m - n_kept` lowest scores of every aligned group of `m` columns.

    Args:
        scores: [rows, k], k a multiple of `m`.
        n_kept: weights that stay per group, 0 to m.
        m: group length.

    Returns:
        bool [rows, k], exactly `m - n_kept` True per group.
    """
    return prune_lowest(scores.reshape(-1, m), m - n_kept).view(scores.shape)


def _kth_lowest(scores: Tensor, count: int) -> Tensor:
    """The score of rank `count`, counted from 1, of every row: [rows, k] to [rows, 1]."""
    if scores.is_cpu and scores.dtype in (torch.float32, torch.float64):
        # numpy selects with vector instructions, ten times as fast as kthvalue
        ranked = np.partition(scores.detach().numpy(), count - 1, axis=1)
        return torch.from_numpy(ranked[:, count - 1 : count].copy())
    return torch.kthvalue(scores, count, dim=1, keepdim=True).values
