"""Tables that decode several codes at a time, made from a code.

A window of the next `WINDOW` bits of a stream holds four to five codes of trained weights. One look-up gives all that
lie in it as a whole; codes that are longer than a window, one in a thousand, are found by binary search among the
places where codes begin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modicum.kernels.huffman.code import Code
from modicum.kernels.huffman.luts import luts_of

WINDOW = 11
"""Bits of a window: 2048 entries of 8 bytes take half of a core's first cache."""

MAX_SYMBOLS = 6
"""Symbols that one entry holds at most."""


@dataclass(frozen=True)
class Tables:
    """What a decoder reads instead of a code.

    Attributes:
        windows: uint64 [2 ** WINDOW]; bytes 0 to 5 are the symbols, byte 6 their number, byte 7 their bits together.
            0 where the first code is longer than a window, or where none begins.
        symbols: uint8 [k], in the order of their codes.
        starts: uint32 [k], ascending: where each code begins, as a fraction of 2 ** 32.
        lengths: uint8 [256], bits of every symbol's code, 0 for none.
    """

    windows: NDArray[np.uint64]
    symbols: NDArray[np.uint8]
    starts: NDArray[np.uint32]
    lengths: NDArray[np.uint8]


@dataclass(frozen=True)
class LaneTables:
    """What a lane of a GPU looks up.

    Attributes:
        windows: int64 [2 ** WINDOW], the bits of `Tables.windows`.
        first: int16 [2 ** WINDOW], the symbol of a window's first code and 256 times its length; 0 if it is longer.
        luts: uint8 [rows + 1, 256], as `luts_of` makes them: from every entry one gets to a symbol.
    """

    windows: Tensor
    first: Tensor
    luts: Tensor


def lane_tables(code: Code, tables: Tables, device: torch.device) -> LaneTables:
    """The tables of a code for lanes, on `device`."""
    windows = torch.from_numpy(tables.windows.view(np.int64))
    symbol, length = first_codes(code, WINDOW)
    first = torch.from_numpy(symbol.astype(np.int16) | length.astype(np.int16) << 8)
    return LaneTables(windows.to(device), first.to(device), torch.from_numpy(luts_of(code)).to(device))


def tables_of(code: Code) -> Tables:
    """The tables of a code."""
    symbols, starts = code.ordered()
    return Tables(_windows(code, WINDOW), symbols, starts, code.lengths)


def first_codes(code: Code, bits: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """For every value of the next `bits` bits the symbol whose code comes first and its length, uint8 [2 ** bits] each.

    The length is 0 where the code does not end within the window, or where none begins.
    """
    symbols, starts = code.ordered()
    windows = np.arange(1 << bits, dtype=np.int64) << (32 - bits)
    place = np.searchsorted(starts, windows, side="right") - 1  # -1 before the first code
    symbol = symbols[place]
    length = code.lengths[symbol].astype(np.int64)
    inside = (place >= 0) & (windows < starts[place] + (1 << (32 - length))) & (length <= bits)
    return np.where(inside, symbol, 0).astype(np.uint8), np.where(inside, length, 0).astype(np.uint8)


def _windows(code: Code, bits: int) -> NDArray[np.uint64]:
    """The table `Tables.windows`, for windows of `bits` bits."""
    symbol, length = first_codes(code, bits)
    window = np.arange(1 << bits, dtype=np.int64)
    number, consumed = np.zeros_like(window), np.zeros_like(window)
    entries = np.zeros(1 << bits, np.uint64)
    for slot in range(MAX_SYMBOLS):
        rest = (window << consumed) & ((1 << bits) - 1)
        found, wide = symbol[rest], length[rest].astype(np.int64)
        fits = (number == slot) & (wide > 0) & (consumed + wide <= bits)
        entries |= np.where(fits, found, 0).astype(np.uint64) << np.uint64(8 * slot)
        number, consumed = number + fits, consumed + np.where(fits, wide, 0)
    return entries | number.astype(np.uint64) << np.uint64(48) | consumed.astype(np.uint64) << np.uint64(56)
