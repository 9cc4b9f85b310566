"""What no code for single bytes can beat: the entropy of the bytes of weights, rank by rank.

The bytes are those that lossless methods see: every weight turned by one bit, so that the sign comes last and the
first byte of a bfloat16 or float32 is its exponent. A code that knows only how often a byte value occurs needs at
least as many bits as the entropies of all ranks together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modicum.kernels.byteplanes import DTYPES
from modicum.kernels.huffman.code import entropy

PIECE = 1 << 20
"""Weights whose bytes are counted together."""


def bound(tensors: Sequence[Tensor]) -> float:
    """Bits per weight that the best code for single bytes needs.

    Args:
        tensors: on a CPU, of any shape, one dtype of `DTYPES`.
    """
    return sum(entropy(row) for row in byte_counts(tensors))


def byte_counts(tensors: Sequence[Tensor]) -> NDArray[np.int64]:
    """How often each byte occurs at each rank, the byte with the exponent last: int64 [bytes of the dtype, 256].

    Args:
        tensors: on a CPU, of any shape, one dtype of `DTYPES`.
    """
    word = DTYPES[tensors[0].dtype]
    counts = np.zeros((word.itemsize, 256), np.int64)
    for tensor in tensors:
        for piece in tensor.detach().reshape(-1).view(torch.uint8).split(word.itemsize * PIECE):
            _count(piece.numpy().view(word), counts)
    return counts


def _count(words: NDArray[np.generic], counts: NDArray[np.int64]) -> None:
    """Add how often each byte occurs in `words` to `counts`, int64 [bytes, 256], least significant rank first."""
    turned = words << 1 | words >> (8 * words.itemsize - 1)  # type: ignore[operator]
    for rank, row in enumerate(counts):
        row += np.bincount((turned >> (8 * rank)).astype(np.uint8), minlength=256)
