"""Which cached tokens stay: scores per token in, ascending positions out; and the attention that scores them.

A choice never waits for the device (no `nonzero`, no number read back): the mask of what stays is turned into
positions by a running count and one scatter. Equal scores go to the lower position, on every device.

Legend: R rows, H heads, S cached tokens, q queries, d channels of a head. Scores are float32 whatever the cache holds.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from modicum.kernels.chunks import by_rows
from modicum.kernels.selection import prune_lowest

LOGIT_BYTES = 64 << 20
"""Of the logits that are in memory together."""


def keep_highest(scores: Tensor, count: int) -> Tensor:
    """Positions of the `count` highest scores, ascending; the lower position wins a tie.

    Args:
        scores: `[R, H, S]`, any real dtype, free of NaN; infinite where a token stays or goes in any case.
        count: 1 to S.

    Returns:
        int64 `[R, H, count]`.
    """
    flat = scores.flatten(0, -2)  # [R H, S]
    stays = prune_lowest(-flat, count)
    slot = torch.where(stays, stays.cumsum(-1) - 1, count)  # whatever goes is written into one slot too many
    positions = torch.arange(flat.shape[1], device=flat.device).expand_as(slot)
    found = slot.new_empty(len(flat), count + 1).scatter_(1, slot, positions)
    return found[:, :count].unflatten(0, scores.shape[:-1])


def dots(queries: Tensor, keys: Tensor) -> Tensor:
    """Products of queries and keys in float32, without a float32 copy of all keys.

    Args:
        queries: `[R, H, q, d]`, any float dtype.
        keys: `[R, H, S, d]`, any float dtype.

    Returns:
        float32 `[R, H, q, S]`.
    """
    with torch.autocast(keys.device.type, enabled=False):
        return _dots(queries.flatten(0, 1), keys.flatten(0, 1)).unflatten(0, keys.shape[:2])


def _dots(queries: Tensor, keys: Tensor) -> Tensor:
    """`[n, q, d]` with `[n, S, d]`, float32 `[n, q, S]`."""
    if keys.dtype == torch.float32:
        return queries.float() @ keys.mT
    if keys.is_cuda:  # accumulates in float32 by itself; only the result has to stay so
        return torch.bmm(queries.to(keys.dtype), keys.mT, out_dtype=torch.float32)
    row_bytes = 4 * keys.shape[1] * keys.shape[2]
    return by_rows(lambda q, k: q.float() @ k.float().mT, queries, keys, row_bytes=row_bytes)


def attention_mass(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """How much attention each token gets from all the queries together: the sum over i of softmax_j(scale q_i k_j).

    Args:
        queries: `[R, H, q, d]`, at least one.
        keys: `[R, H, S, d]`.
        scale: of the softmax.

    Returns:
        float32 `[R, H, S]`; sums to q.
    """
    together = max(1, LOGIT_BYTES // (4 * keys.shape[:-1].numel()))
    mass = keys.new_zeros(keys.shape[:-1], dtype=torch.float32)
    for some in queries.split(together, dim=2):
        mass += dots(some, keys).mul_(scale).softmax(dim=-1).sum(dim=2)
    return mass


def average_pool(scores: Tensor, kernel: int) -> Tensor:
    """Mean over `kernel` neighbours (odd) in the order of the cache; beyond the ends there are zeros.

    Args:
        scores: float32 `[R, H, S]`.
        kernel: odd.
    """
    return F.avg_pool1d(scores, kernel, stride=1, padding=kernel // 2)
