"""A prefix code for bytes: short codes for frequent symbols, none longer than 32 bits.

Huffman's algorithm merges the two rarest nodes until one tree is left; the depth of a symbol is the length of its
code. Only the lengths matter: the codes that are written are canonical, that is, counted up in the order of their
lengths. An end symbol of frequency 1 takes part; its code, the last one and therefore all ones, fills the last byte
of a stream and never stands for a number.

A stream of DFloat11 (2504.11651) describes its code by tables of 256 bytes that decode eight bits at a time, which
limits it: symbols below 240, codes of at most 32 bits, at most 16 tables beside the root. Where Huffman's code has
longer codes, the counts of the two, three, ... rarest symbols are set to 1 until it has not, as published. Where it
needs more tables, which the original does not foresee, rare symbols are counted as if they were more frequent.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

SYMBOLS = 240
"""Symbols that have a code are smaller than this."""

MAX_BITS = 32
MAX_ROWS = 17
"""Tables of 256 entries: the root and 16 others."""

END = 256
"""Index of the end symbol among counts and lengths."""


@dataclass(frozen=True)
class Code:
    """A prefix code over bytes.

    Attributes:
        lengths: uint8 [256], bits of every symbol's code; 0 for a symbol that has none.
        codes: uint32 [256], the codes, in their low bits.
        end: the code of the end symbol and its length; the length is 0 if it is not known.
    """

    lengths: NDArray[np.uint8]
    codes: NDArray[np.uint32]
    end: tuple[int, int] = (0, 0)

    def ordered(self) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
        """The symbols in the order of their codes, uint8 [k], and where each begins in 2 ** 32, uint32 [k]."""
        symbols = np.flatnonzero(self.lengths)
        starts = self.codes[symbols].astype(np.uint64) << (32 - self.lengths[symbols].astype(np.uint64))
        order = np.argsort(starts, kind="stable")
        return symbols[order].astype(np.uint8), starts[order].astype(np.uint32)


def code_of_counts(counts: NDArray[np.int64]) -> Code:
    """The canonical code for symbols that occur `counts` times, int64 [256], at least one of them.

    Only symbols below `SYMBOLS` may occur.
    """
    lengths = huffman_lengths(counts)
    flattened, rarest = counts, 2
    while lengths.max() > MAX_BITS:
        flattened = _with_rarest_once(counts, rarest)
        lengths, rarest = huffman_lengths(flattened), rarest + 1
    total = int(counts.sum())
    for shift in range(total.bit_length(), -1, -1):  # ends at the latest with equal counts: codes of 8 bits
        code = canonical(lengths)
        if rows_needed(code) <= MAX_ROWS:
            break
        lengths = huffman_lengths(np.where(counts, np.maximum(flattened, total >> shift), 0))
    return code


def huffman_lengths(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Optimal code lengths, uint8 [257], of the symbols that occur and of the end symbol, which occurs once."""
    used = np.flatnonzero(counts)
    leaves = sorted([(1, END), *((int(counts[symbol]), int(symbol)) for symbol in used)], key=lambda x: x[0])
    depths = _depths([frequency for frequency, _ in leaves])
    lengths = np.zeros(END + 1, np.uint8)
    # Sorted again, the deepest leaf goes to the end symbol: among equal counts depths may be exchanged.
    lengths[[symbol for _, symbol in leaves]] = sorted(depths, reverse=True)
    return lengths


def _depths(frequencies: list[int]) -> list[int]:
    """Depth of every leaf of Huffman's tree; of equal weights, the older node is merged first."""
    age = count(len(frequencies))
    heap = [(frequency, leaf) for leaf, frequency in enumerate(frequencies)]
    parent = [0] * (2 * len(frequencies) - 1)
    heapq.heapify(heap)
    while len(heap) > 1:
        node = next(age)
        (left, a), (right, b) = heapq.heappop(heap), heapq.heappop(heap)
        parent[a] = parent[b] = node
        heapq.heappush(heap, (left + right, node))
    depth = [0] * len(parent)
    for node in range(len(parent) - 2, -1, -1):
        depth[node] = depth[parent[node]] + 1
    return depth[: len(frequencies)]


def _with_rarest_once(counts: NDArray[np.int64], rarest: int) -> NDArray[np.int64]:
    used = np.flatnonzero(counts)
    changed = counts.copy()
    changed[used[np.argsort(counts[used], kind="stable")[:rarest]]] = 1
    return changed


def canonical(lengths: NDArray[np.uint8]) -> Code:
    """The code whose codes count up with length and symbol; `lengths` uint8 [257] as `huffman_lengths` gives them."""
    codes = np.zeros(END + 1, np.uint32)
    value = previous = 0
    for symbol in sorted(np.flatnonzero(lengths).tolist(), key=lambda symbol: (lengths[symbol], symbol)):
        length = int(lengths[symbol])
        value <<= length - previous
        codes[symbol] = value
        value, previous = value + 1, length
    return Code(lengths[:END].copy(), codes[:END].copy(), (int(codes[END]), int(lengths[END])))


def rows_needed(code: Code) -> int:
    """How many tables of 256 entries decode this code eight bits at a time: one per byte-aligned prefix."""
    return len(prefixes(code))


def prefixes(code: Code) -> list[tuple[int, int]]:
    """All (bytes, value) that are whole bytes at the beginning of a longer code, shortest first, the empty one too."""
    found = {(0, 0)}
    for symbol in np.flatnonzero(code.lengths).tolist():
        length, value = int(code.lengths[symbol]), int(code.codes[symbol])
        found.update((depth, value >> (length - 8 * depth)) for depth in range(1, (length - 1) // 8 + 1))
    return sorted(found)


def entropy(counts: NDArray[np.int64]) -> float:
    """Bits per symbol that no code without memory can beat, for symbols that occur `counts` times."""
    shares = counts[counts > 0] / max(int(counts.sum()), 1)
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def payload_bits(code: Code, counts: NDArray[np.int64]) -> int:
    """Bits of all codes together, without padding."""
    return int(counts @ code.lengths.astype(np.int64))
