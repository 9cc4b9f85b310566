"""Prefix codes: optimal, complete, limited, and the same after a way through the published tables."""

from __future__ import annotations

from fractions import Fraction
from heapq import heapify, heappop, heappush

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modicum.errors import CheckpointError
from modicum.kernels.huffman.code import (
    END,
    MAX_ROWS,
    SYMBOLS,
    canonical,
    code_of_counts,
    entropy,
    huffman_lengths,
    payload_bits,
    rows_needed,
)
from modicum.kernels.huffman.luts import code_of_luts, luts_of
from modicum.kernels.huffman.tables import MAX_SYMBOLS, WINDOW, tables_of


@st.composite
def all_counts(draw: st.DrawFn, most: int = 10**6) -> np.ndarray:
    """How often up to 60 symbols occur; steep or flat."""
    some = draw(st.dictionaries(st.integers(0, SYMBOLS - 1), st.integers(1, most), min_size=1, max_size=60))
    steepness = draw(st.sampled_from([1, 4]))
    counts = np.zeros(256, np.int64)
    counts[list(some)] = [max(1, value // 10 ** (steepness * i % 7)) for i, value in enumerate(some.values())]
    return counts


def least_bits(counts: np.ndarray) -> int:
    """The cost of Huffman's tree: every merge costs one bit for everything below it."""
    heap = [1, *counts[counts > 0].tolist()]
    heapify(heap)
    total = 0
    while len(heap) > 1:
        merged = heappop(heap) + heappop(heap)
        total += merged
        heappush(heap, merged)
    return total


@settings(deadline=None, max_examples=50)
@given(counts=all_counts())
def test_no_prefix_code_is_shorter(counts: np.ndarray) -> None:
    lengths = huffman_lengths(counts).astype(int)
    assert counts @ lengths[:END] + lengths[END] == least_bits(counts)
    assert sum(Fraction(1, 1 << length) for length in lengths[lengths > 0]) == 1
    assert ((lengths[:END] > 0) == (counts > 0)).all()
    assert lengths[END] == lengths.max()


@settings(deadline=None, max_examples=50)
@given(counts=all_counts())
def test_codes_survive_the_published_tables(counts: np.ndarray) -> None:
    code = code_of_counts(counts)
    luts = luts_of(code)
    assert luts.dtype == np.uint8
    assert luts.shape == (rows_needed(code) + 1, 256)
    read = code_of_luts(luts)
    assert np.array_equal(read.lengths, code.lengths)
    assert np.array_equal(read.codes, code.codes)


@settings(deadline=None, max_examples=60)
@given(counts=all_counts(), number=st.integers(0, 2**32 - 1))
def test_a_walk_through_the_tables_finds_the_symbol_of_any_bits(counts: np.ndarray, number: int) -> None:
    code = code_of_counts(counts)
    luts, bits = luts_of(code), f"{number:032b}"
    row = 0
    for byte in range(4):
        entry = int(luts[row, int(bits[8 * byte : 8 * byte + 8], 2)])
        if entry < SYMBOLS:
            break
        row = 256 - entry
    assert entry < SYMBOLS
    written = f"{int(code.codes[entry]):0{int(code.lengths[entry])}b}"
    end = f"{code.end[0]:0{code.end[1]}b}"
    assert bits.startswith((written, end))
    assert luts[-1, entry] == len(written)


@settings(deadline=None, max_examples=60)
@given(counts=all_counts(), window=st.integers(0, (1 << WINDOW) - 1))
def test_windows_hold_the_codes_that_fit_into_them(counts: np.ndarray, window: int) -> None:
    code = code_of_counts(counts)
    written = {
        f"{int(code.codes[s]):0{int(code.lengths[s])}b}": int(s)
        for s in np.flatnonzero(code.lengths).tolist()
    }
    left, expected = f"{window:0{WINDOW}b}", []
    while len(expected) < MAX_SYMBOLS and (first := [bits for bits in written if left.startswith(bits)]):
        expected.append(written[first[0]])
        left = left[len(first[0]) :]
    entry = int(tables_of(code).windows[window]).to_bytes(8, "little")
    assert list(entry[: entry[6]]) == expected
    assert entry[7] == WINDOW - len(left)


def test_fibonacci_counts_are_cut_to_exactly_32_bits() -> None:
    counts = np.zeros(256, np.int64)
    counts[:2] = 1, 2  # the end symbol is the second 1
    for symbol in range(2, 40):
        counts[symbol] = counts[symbol - 1] + counts[symbol - 2]
    assert huffman_lengths(counts).max() > 32
    code = code_of_counts(counts)
    assert code.lengths.max() == 32
    assert payload_bits(code, counts) <= 1.0001 * least_bits(counts)


def test_one_symbol_takes_one_bit() -> None:
    counts = np.zeros(256, np.int64)
    counts[7] = 1000
    code = code_of_counts(counts)
    assert (code.lengths[7], code.codes[7], code.end) == (1, 0, (1, 1))
    assert entropy(counts) == 0


@pytest.mark.parametrize("common", [0, 10**9])
def test_240_symbols_fit_into_the_tables(common: int) -> None:
    counts = np.zeros(256, np.int64)
    counts[:SYMBOLS] = 1 + np.arange(SYMBOLS) % 5
    counts[120] += common
    code = code_of_counts(counts)
    assert rows_needed(code) <= MAX_ROWS
    assert np.array_equal(code_of_luts(luts_of(code)).codes, code.codes)


def test_the_entropy_of_equal_shares_is_their_logarithm() -> None:
    counts = np.zeros(256, np.int64)
    counts[10:26] = 5
    assert entropy(counts) == pytest.approx(4)
    assert entropy(np.zeros(256, np.int64)) == 0


def tables_with(change: str) -> np.ndarray:
    """Tables of a code of 3 rows, damaged."""
    lengths = np.zeros(END + 1, np.uint8)
    lengths[:20] = [*range(1, 19), 20, 20]
    lengths[END] = 19
    luts = luts_of(canonical(lengths))
    assert len(luts) == 4
    match change:
        case "shape":
            return luts[:, :255]
        case "dtype":
            return luts.astype(np.int16)
        case "rows":
            return np.zeros((19, 256), np.uint8)
        case "long":
            luts[-1, 0] = 33
        case "empty":
            luts[-1] = 0
        case "high":
            luts[-1, 250] = 4
        case "lost":
            luts[1][luts[1] == 254] = 0
        case "circle":
            luts[0][luts[0] == 255] = 254
        case "place":
            luts[-1, 30] = 5
    return luts


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("shape", "instead of uint8"),
        ("dtype", "instead of uint8"),
        ("rows", "instead of uint8"),
        ("long", "lengths outside"),
        ("empty", "lengths outside"),
        ("high", "lengths outside"),
        ("lost", "never sends to row 2"),
        ("circle", "never sends to row 1"),
        ("place", "no place for symbol 30"),
    ],
)
def test_tables_that_describe_no_code_are_refused(change: str, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        code_of_luts(tables_with(change), "block.luts")


@settings(deadline=None, max_examples=120)
@given(data=st.binary(max_size=40), counts=all_counts(), seed=st.integers(0, 2**31))
def test_damaged_tables_are_refused_or_are_a_code(data: bytes, counts: np.ndarray, seed: int) -> None:
    luts = luts_of(code_of_counts(counts))
    at = np.random.default_rng(seed).integers(0, luts.size, len(data))
    luts.reshape(-1)[at] = np.frombuffer(data, np.uint8)
    try:
        code = code_of_luts(luts)
    except CheckpointError:
        return
    lengths = code.lengths[code.lengths > 0].astype(int)
    assert sum(Fraction(1, 1 << length) for length in lengths) <= 1
