"""From weights to DFloat11: count the symbols of a group, make one code, write all codes in one pass.

Beside the result there are only a few megabytes: the size of the stream follows from the counts, and the loop that
writes it takes the weights as they lie in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modicum.kernels.huffman.code import SYMBOLS, Code, code_of_counts, payload_bits
from modicum.kernels.huffman.compiled import compiled
from modicum.kernels.huffman.layout import BLOCK_BYTES, CHUNK_BITS, CHUNKS, DTYPES, MOST, Encoded, packed_gaps
from modicum.kernels.huffman.luts import luts_of

PIECE = 1 << 20
"""Weights of a float32 tensor whose halves are separated together."""


def symbol_counts(tensors: Sequence[Tensor]) -> NDArray[np.int64]:
    """How often each symbol (in bfloat16: exponent) occurs in these tensors: int64 [256].

    Args:
        tensors: on a CPU, of any shape, one dtype of `DTYPES`.

    Raises:
        MissingExtra: Numba is not installed.
    """
    counts = np.zeros(256, np.int64)
    for tensor in tensors:
        for words, _ in _pieces(tensor):
            compiled().count(words, counts)
    return counts


def why_raw(counts: NDArray[np.int64]) -> str:
    """Why weights with these symbols cannot be encoded and are to be stored as they are; empty if they can be."""
    if not counts.any():
        return "there is nothing to encode"
    if counts[SYMBOLS:].any():
        return "there are infinities, NaNs or magnitudes beyond the format's range"
    if counts.sum() > MOST or payload_bits(code_of_counts(counts), counts) > 8 * MOST:
        return f"there are more than {MOST} weights or bytes in one group"
    return ""


def encode(tensors: Sequence[Tensor]) -> Encoded | None:
    """Encode the weights of one group with one code.

    Args:
        tensors: on a CPU, of any shape (row-major order counts), all of one dtype of `DTYPES`.

    Returns:
        The arrays of the group, bit-exact for every pattern of bits; None if they are to be stored raw (`why_raw`).
        Small or noisy groups may come out larger than they were: compare `nbytes`.

    Raises:
        MissingExtra: Numba is not installed.
    """
    counts = symbol_counts(tensors)
    if why_raw(counts):
        return None
    code, n, dtype = code_of_counts(counts), int(counts.sum()), tensors[0].dtype
    raw = torch.empty(n, dtype=torch.uint8)
    low = torch.empty(n, dtype=torch.int16) if dtype == torch.float32 else None
    writer = _Writer(code, payload_bits(code, counts), n)
    for tensor in tensors:
        for words, lower in _pieces(tensor):
            here = slice(writer.written, writer.written + len(words))
            if low is not None and lower is not None:
                low[here] = lower
            writer.write(words, raw.numpy()[here])
    stream, gaps, positions = writer.finish()
    sizes = torch.tensor([tensor.numel() for tensor in tensors], dtype=torch.int64)
    luts = torch.from_numpy(luts_of(code))
    return Encoded(luts, stream, raw, gaps, positions, sizes.cumsum(0)[:-1], dtype, low)


def _pieces(tensor: Tensor) -> Iterator[tuple[NDArray[np.uint16], Tensor | None]]:
    """The upper 16 bits of all weights, uint16, and the lower, int16, some weights at a time."""
    if tensor.dtype not in DTYPES:
        raise TypeError(f"weights of {tensor.dtype} have no lossless code")
    flat = tensor.detach().reshape(-1)
    if tensor.dtype != torch.float32:
        yield flat.view(torch.int16).numpy().view(np.uint16), None
        return
    for piece in flat.view(torch.int16).view(-1, 2).split(PIECE):  # little-endian: the lower half comes first
        yield piece[:, 1].contiguous().numpy().view(np.uint16), piece[:, 0]


class _Writer:
    """The stream of a group while it grows.

    Args:
        code: of all symbols that will come.
        bits: of all codes together.
        n: how many there will be.
    """

    def __init__(self, code: Code, bits: int, n: int) -> None:
        self.code, self.bits, self.size = code, bits, -(-bits // 8)
        blocks = -(-self.size // BLOCK_BYTES)
        self.stream = np.zeros(-(-bits // 32), np.uint32)
        self.gaps = np.zeros(blocks * CHUNKS, np.uint8)
        self.positions = np.full(blocks + 1, n, np.uint32)
        # bits that wait for a full word of the stream, bits written, symbols written, chunks that have a gap
        self.state = np.zeros(4, np.uint64)

    @property
    def written(self) -> int:
        """How many symbols are in the stream."""
        return int(self.state[2])

    def write(self, words: NDArray[np.uint16], raw: NDArray[np.uint8]) -> None:
        """Append the symbols of 16-bit weights, uint16 [n], and put their other bits into `raw`, uint8 [n]."""
        code = self.code
        compiled().write(
            words, code.codes, code.lengths, self.state, self.stream, self.gaps, self.positions, raw
        )

    def finish(self) -> tuple[Tensor, Tensor, Tensor]:
        """Fill the last byte with the end symbol; the stream, the gaps and the positions as they are stored."""
        pad, waiting = -self.bits % 8, self.bits % 32
        if waiting:
            end, length = self.code.end
            head = end >> (length - pad) if length > pad else end << (pad - length)
            tail = (int(self.state[0]) & ((1 << waiting) - 1)) << pad | head
            self.stream[-1] = tail << (32 - waiting - pad)
        self._mark_end()
        stream = self.stream.byteswap(inplace=True).view(np.uint8)[: self.size]
        positions = self.positions.view(np.uint8)
        return torch.from_numpy(stream), torch.from_numpy(packed_gaps(self.gaps)), torch.from_numpy(positions)

    def _mark_end(self) -> None:
        """If no code begins in the last chunk, its gap is where the codes end: such a block can be read, too."""
        chunk, gap = divmod(self.bits, CHUNK_BITS)
        if chunk == int(self.state[3]) and chunk < len(self.gaps):
            self.gaps[chunk] = gap
