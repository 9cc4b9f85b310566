"""The tables in which a DFloat11 file states its code, written and read.

`luts` is uint8 [rows + 1, 256]. Row 0 is indexed by the next byte of the stream. An entry below 240 is the symbol; an
entry v >= 240 sends to row 256 - v, which the byte behind it indexes, and so on, four bytes at most. Every other row
belongs to the codes that share whole leading bytes. A code that ends inside a byte fills all continuations of it. The
last row holds the length of every symbol's code.

The codes in published files are not canonical, and entries that no code reaches (those of the end symbol) repeat
whatever was written before them, even across rows: taken at their word they may lead in circles. A table is therefore
not walked but read back into a code: the first mention of a row is the true one, a symbol's place is the first that
its length allows, and whatever remains is ignored.
"""

from __future__ import annotations

from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from modicum.errors import CheckpointError
from modicum.kernels.huffman.code import MAX_BITS, MAX_ROWS, SYMBOLS, Code, prefixes


def luts_of(code: Code) -> NDArray[np.uint8]:
    """The published tables of a code of at most `MAX_ROWS` rows: uint8 [rows + 1, 256].

    Whatever bits come, they lead to a symbol that has a length: entries that no code reaches repeat the one before them
    in their row. (Canonical codes leave only the end symbol's place free, which is never the first of a row.)
    """
    rows = {prefix: row for row, prefix in enumerate(prefixes(code))}
    luts = np.full((len(rows) + 1, 256), code.ordered()[0][0], np.uint8)
    luts[-1] = code.lengths
    written = np.zeros(luts.shape, bool)
    for (depth, prefix), row in rows.items():
        if depth:
            _write(luts, written, rows[depth - 1, prefix >> 8], prefix & 255, 1, 256 - row)
    for symbol in np.flatnonzero(code.lengths).tolist():
        length, value = int(code.lengths[symbol]), int(code.codes[symbol])
        depth, left = (length - 1) // 8, -length % 8  # `left` bits of its last byte are free
        row = rows[depth, value >> (8 - left)]
        _write(luts, written, row, (value << left) & 255, 1 << left, symbol)
    last = np.maximum.accumulate(np.where(written[:-1], np.arange(256), 0), axis=1)
    luts[:-1] = np.take_along_axis(luts[:-1], last, axis=1)
    return luts


def _write(
    luts: NDArray[np.uint8], written: NDArray[np.bool_], row: int, first: int, n: int, entry: int
) -> None:
    luts[row, first : first + n] = entry
    written[row, first : first + n] = True


def code_of_luts(luts: NDArray[np.uint8], name: str = "luts") -> Code:
    """The code that published tables describe, canonical or not.

    Args:
        luts: uint8 [rows + 1, 256].
        name: what an error calls them.

    Raises:
        CheckpointError: they describe no prefix code.
    """
    if luts.dtype != np.uint8 or luts.ndim != 2 or luts.shape[1] != 256 or not 2 <= len(luts) <= MAX_ROWS + 1:
        _refuse(name, f"is {luts.dtype} {list(luts.shape)} instead of uint8 [2 to {MAX_ROWS + 1}, 256]")
    tables, lengths = luts[:-1], luts[-1]
    if lengths[SYMBOLS:].any() or lengths.max() > MAX_BITS or not lengths.any():
        _refuse(name, f"gives lengths outside of 1 to {MAX_BITS} bits, or to symbols from {SYMBOLS} on")
    depths, leads = _rows(tables, name)
    codes = np.zeros(256, np.uint32)
    for symbol in np.flatnonzero(lengths).tolist():
        codes[symbol] = _place(tables, depths, leads, symbol, int(lengths[symbol]), name)
    return Code(lengths.copy(), codes)  # no two overlap, because no two share an entry


def _rows(tables: NDArray[np.uint8], name: str) -> tuple[NDArray[np.int64], list[int]]:
    """Depth in bytes of every row, int64 [rows], and the leading bytes of its codes."""
    depths, leads = np.zeros(len(tables), np.int64), [0] * len(tables)
    for row in range(1, len(tables)):
        mentions = np.flatnonzero(tables[:row] == 256 - row)  # a row stands behind those that send to it
        if not len(mentions):
            _refuse(name, f"never sends to row {row} from a row before it")
        parent, byte = divmod(int(mentions[0]), 256)
        depths[row], leads[row] = depths[parent] + 1, leads[parent] << 8 | byte
        if depths[row] > 3:
            _refuse(name, f"has codes of more than {MAX_BITS} bits: row {row} lies too deep")
    return depths, leads


def _place(
    tables: NDArray[np.uint8],
    depths: NDArray[np.int64],
    leads: list[int],
    symbol: int,
    length: int,
    name: str,
) -> int:
    """The code of a symbol: the first place of its length that holds it."""
    free = -length % 8
    slots = tables.reshape(len(tables), -1, 1 << free)  # [rows, places of this length, continuations]
    fits = (slots == symbol).all(2) & (depths == (length - 1) // 8)[:, None]
    if not fits.any():
        _refuse(name, f"has no place for symbol {symbol}, whose code takes {length} bits")
    row, slot = divmod(int(fits.argmax()), slots.shape[1])
    return leads[row] << (8 - free) | slot


def _refuse(name: str, wrong: str) -> NoReturn:
    raise CheckpointError(
        f"{name} {wrong}.", "The file is damaged or not of DFloat11; fetch or make it again."
    )
