"""Whether every bit of a group is the one that `encode` writes.

Decoding reads neither all gaps (on a processor) nor the entries of the tables that no code reaches, nor what fills the
last byte of the stream. Damage there changes no weight here and now, but a gap matters to the next who decodes on a
GPU. So a file is proved intact by looking at what is not read, too.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from modicum.kernels.huffman.code import payload_bits
from modicum.kernels.huffman.decoder import check_gaps
from modicum.kernels.huffman.encoder import symbol_counts
from modicum.kernels.huffman.layout import Prepared, refuse
from modicum.kernels.huffman.luts import luts_of


def check_written(prepared: Prepared, weights: Tensor) -> None:
    """Compare what decoding does not read with what the encoder of this package writes.

    Args:
        prepared: a group on a CPU, written by `encode`; other writers fill free entries of the tables in other ways.
        weights: what it decodes to, [n].

    Raises:
        CheckpointError: a gap, an entry of the tables or the end of the stream is another one.
        MissingExtra: Numba is not installed.
    """
    check_gaps(prepared)
    if not np.array_equal(prepared.encoded.luts.numpy(), luts_of(prepared.code)):
        refuse(prepared.name, "luts has entries that its code does not explain")
    bits = payload_bits(prepared.code, symbol_counts([weights]))
    free = -bits % 8
    if int(prepared.encoded.encoded_exponent[-1]) & ((1 << free) - 1) != _filler(prepared, free):
        refuse(prepared.name, "the last byte of encoded_exponent does not end with the end symbol")


def _filler(prepared: Prepared, free: int) -> int:
    """The first `free` bits of the end symbol's code, which is the last code and so all ones, and zeros behind it."""
    lengths = prepared.code.lengths.astype(np.int64)
    room = (1 << 32) - int((1 << (32 - lengths[lengths > 0])).sum())  # of 2 ** 32, a power of two
    length = 33 - room.bit_length()
    ones = (1 << min(length, free)) - 1
    return ones << (free - min(length, free))
