"""Which weights go: exact counts of the lowest scores, ties broken by position.

A threshold alone removes one weight too many, or a whole plateau of equal scores. Here the count is exact
and the same scores always give the same mask: equal scores go in order of their index, lowest first. A
selection (linear time) finds the threshold and a running count hands out the ties; nothing is
sorted in full, and nothing as large as the scores is held beside them but the mask.

Masks are True where a weight is pruned. Scores must be free of NaN.
"""

from __future__ import annotations

from math import inf, sqrt

import numpy as np
import torch
from torch import Tensor

from modicum.kernels.chunks import CHUNK_BYTES, by_rows

PART = CHUNK_BYTES // 4  # scores that are looked at together
SAMPLE = 1 << 15
"""Scores that are sorted to learn roughly where the threshold of a large matrix lies."""


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
    return by_rows(lambda some: _lowest_of_rows(some, count), scores, row_bytes=4 * scores.shape[1])


def _lowest_of_rows(scores: Tensor, count: int) -> Tensor:
    threshold = _kth_lowest(scores, count)  # [rows, 1]
    pruned, ties = scores < threshold, scores == threshold
    wanted = count - pruned.sum(1, keepdim=True)
    return pruned.logical_or_(ties.logical_and_(ties.cumsum(1, dtype=torch.int32) <= wanted))


def prune_lowest_global(scores: Tensor, count: int) -> Tensor:
    """Mark the `count` lowest scores of the whole matrix.

    Args:
        scores: [rows, k], any real dtype.
        count: 0 to rows * k.

    Returns:
        bool [rows, k], exactly `count` True.
    """
    flat = scores.reshape(-1)
    if len(flat) <= PART or not 0 < count < len(flat):
        return prune_lowest(flat[None], count).view(scores.shape)
    threshold = _kth_lowest_of_many(flat, count)
    wanted = count - sum(int((part < threshold).count_nonzero()) for part in flat.split(PART))
    pruned = torch.empty_like(flat, dtype=torch.bool)
    for part, marked in zip(flat.split(PART), pruned.split(PART), strict=True):
        torch.lt(part, threshold, out=marked)
        if wanted:
            ties = part == threshold
            ties &= ties.cumsum(0, dtype=torch.int32) <= wanted
            marked |= ties
            wanted -= int(ties.count_nonzero())
    return pruned.view(scores.shape)


def lowest_blocks(sums: Tensor, count: int, rows: int, columns: int) -> Tensor:
    """Mark the `count` blocks of the lowest sums.

    Args:
        sums: [r, c], one for each block.
        count: 0 to r * c.
        rows: height of a block.
        columns: width of a block.

    Returns:
        bool [r * rows, c * columns], exactly `count` blocks True.
    """
    lowest = prune_lowest_global(sums, count)
    return lowest.repeat_interleave(columns, 1).repeat_interleave(rows, 0)


def semi_structured(scores: Tensor, n_kept: int, m: int) -> Tensor:
    """Mark the `m - n_kept` lowest scores of every aligned group of `m` columns.

    Args:
        scores: [rows, k], k a multiple of `m`.
        n_kept: weights that stay per group, 0 to m.
        m: group length.

    Returns:
        bool [rows, k], exactly `m - n_kept` True per group.
    """

    def some_rows(scores: Tensor) -> Tensor:
        return prune_lowest(scores.reshape(-1, m), m - n_kept).view(scores.shape)

    return by_rows(some_rows, scores, row_bytes=4 * scores.shape[1])


def _kth_lowest(scores: Tensor, count: int) -> Tensor:
    """The score of rank `count`, counted from 1, of every row: [rows, k] to [rows, 1]."""
    if scores.is_cpu and scores.dtype in _EXACT:
        # numpy selects with vector instructions, ten times as fast as kthvalue
        ranked = np.partition(_as_numpy(scores), count - 1, axis=1)
        return torch.from_numpy(ranked[:, count - 1 : count].copy()).to(scores.dtype)
    return torch.kthvalue(scores, count, dim=1, keepdim=True).values


_EXACT = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.uint8})
"""Dtypes that numpy has, or that float32 holds without rounding."""


def _as_numpy(scores: Tensor) -> np.ndarray:
    return (scores if scores.dtype == torch.float64 else scores.float()).detach().numpy()


def _kth_lowest_of_many(scores: Tensor, count: int) -> Tensor:
    """The score of rank `count`, counted from 1, of [n] scores; only those near it are ranked."""
    sample = scores[:: len(scores) // SAMPLE].sort().values
    rank, slack = count / len(scores) * len(sample), 4 * sqrt(len(sample))
    first, last = int(rank - slack), int(rank + slack)
    low = float(sample[first]) if first >= 0 else -inf
    high = float(sample[last]) if last < len(sample) else inf
    below, near = 0, []
    for part in scores.split(PART):
        below += int((part < low).count_nonzero())
        near.append(part[(part >= low) & (part <= high)])
    candidates = torch.cat(near)
    if 0 < count - below <= len(candidates):
        return _kth_lowest(candidates[None], count - below)[0]
    return _kth_lowest(scores[None], count)[0]  # the sample misled
