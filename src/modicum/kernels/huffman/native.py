"""The inner loops on a processor, compiled by Numba: count symbols, write codes, read codes.

A stream is read through a 64-bit word that begins at the next code. One word holds five windows, so five look-ups
follow each other without a branch, and every one of them writes eight bytes, of which only the first few count. A
window without a whole code moves nothing, so one test after the five finds it. A block's symbols go to a buffer that
stays in the first cache and are then joined with the raw bytes by a loop that the compiler turns into vector code.

Nothing here trusts the stream: windows cover their table whatever the bits are, the buffer has room for the last
eight bytes beyond the block's symbols, and bytes beyond the end of the stream read as zero. What is trusted is the
argument check of `modicum.kernels.huffman.layout`.

Imported only when it is needed, because compiling takes seconds (once per machine; the result is cached on disk).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from modicum.kernels.huffman.layout import BLOCK_BITS
from modicum.kernels.huffman.tables import MAX_SYMBOLS, WINDOW

LOOKUPS = 5  # windows of a word: 64 bits, of which up to 7 lie before the next code
SLACK = LOOKUPS * MAX_SYMBOLS + 8
MOST = BLOCK_BITS  # symbols of a block, if every code is one bit
_BYTE = np.uint64(0xFF)
_U = np.uint64


@intrinsic
def _load(typing: Any, data: Any, index: Any) -> Any:
    """Eight bytes of `data` from `index` on, most significant first; the caller guarantees that they are there."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature, arguments)
        return builder.bswap(builder.load(pointer, align=1))

    return types.uint64(data, types.int64), generate


@intrinsic
def _store(typing: Any, data: Any, index: Any, value: Any) -> Any:
    """Write eight bytes to `data` from `index` on, least significant first; the caller guarantees the room."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _pointer(context, builder, signature, arguments), align=1)
        return context.get_dummy_value()

    return types.void(data, types.int64, types.uint64), generate


def _pointer(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.bitcast(builder.gep(array.data, [arguments[1]]), ir.IntType(64).as_pointer())


@njit(nogil=True, cache=True)
def count(words: NDArray[np.uint16], counts: NDArray[np.int64]) -> None:
    """Add how often each symbol occurs in `words`, uint16 [n], to `counts`, int64 [256]."""
    even, odd = (
        np.zeros(256, np.int64),
        np.zeros(256, np.int64),
    )  # equal neighbours need not wait for each other
    for i in range(0, len(words) - 1, 2):
        even[(words[i] >> 7) & 0xFF] += 1
        odd[(words[i + 1] >> 7) & 0xFF] += 1
    if len(words) % 2:
        even[(words[-1] >> 7) & 0xFF] += 1
    for symbol in range(256):
        counts[symbol] += even[symbol] + odd[symbol]


@njit(nogil=True, cache=True)
def write(
    words: NDArray[np.uint16],
    codes: NDArray[np.uint32],
    lengths: NDArray[np.uint8],
    state: NDArray[np.uint64],
    stream: NDArray[np.uint32],
    gaps: NDArray[np.uint8],
    positions: NDArray[np.uint32],
    raw: NDArray[np.uint8],
) -> None:
    """Append the codes of the symbols of `words`, uint16 [n], to `stream`, whose words are not yet byte-swapped.

    Args:
        codes, lengths: `Code`, of all symbols that occur.
        state: uint64 [4]: bits that wait for a full word, bits written, symbols written, chunks that have a gap.
        gaps: uint8 [chunks], positions: uint32 [blocks + 1], raw: uint8 [n]; written.
    """
    waiting, total, chunks = state[0], state[1], state[3]
    for i in range(len(words)):
        if total >> _U(6) == chunks:  # the first code of a chunk
            gaps[chunks] = np.uint8(total & _U(63))
            if chunks & _U(511) == _U(0):
                positions[chunks >> _U(9)] = np.uint32(state[2] + _U(i))
            chunks += _U(1)
        word = words[i]
        symbol = (word >> 7) & 0xFF
        raw[i] = ((word >> 8) & 0x80) | (word & 0x7F)
        length = _U(lengths[symbol])
        waiting = (waiting << length) | _U(codes[symbol])
        if (total & _U(31)) + length >= _U(32):
            stream[total >> _U(5)] = np.uint32((waiting >> ((total + length) & _U(31))) & _U(0xFFFFFFFF))
        total += length
    state[0], state[1], state[2], state[3] = waiting, total, state[2] + _U(len(words)), chunks


@njit(nogil=True, cache=True)
def _load_any(data: NDArray[np.uint8], index: int) -> np.uint64:
    """Eight bytes as `_load` gives them, zeros for those beyond the end."""
    word = _U(0)
    for offset in range(8):
        byte = _U(data[index + offset]) if index + offset < len(data) else _U(0)
        word = (word << _U(8)) | byte
    return word


@njit(nogil=True, cache=True)
def _find(word: np.uint64, starts: NDArray[np.uint32]) -> int:
    """The place of the last code that begins at or before the first 32 bits of `word`; -1 before the first."""
    value = word >> _U(32)
    low, high = 0, len(starts)
    while low < high:
        middle = (low + high) // 2
        if _U(starts[middle]) <= value:
            low = middle + 1
        else:
            high = middle
    return low - 1


@njit(nogil=True, cache=True)
def _next(
    word: np.uint64, symbols: NDArray[np.uint8], starts: NDArray[np.uint32], lengths: NDArray[np.uint8]
) -> int:
    """The code that `word` begins with: 256 * its length + its symbol; 0 if none does."""
    place = _find(word, starts)
    if place < 0:
        return 0
    symbol = symbols[place]
    length = _U(lengths[symbol])
    if ((word >> _U(32)) - _U(starts[place])) >> (_U(32) - length):
        return 0
    return 256 * int(length) + int(symbol)


@njit(nogil=True, cache=True)
def _read(
    stream: NDArray[np.uint8],
    position: int,
    count: int,
    windows: NDArray[np.uint64],
    symbols: NDArray[np.uint8],
    starts: NDArray[np.uint32],
    lengths: NDArray[np.uint8],
    decoded: NDArray[np.uint8],
) -> int:
    """Read `count` codes from bit `position` on into `decoded`, uint8 [count + SLACK].

    Returns:
        The bit behind the last code, or -1 if there is one that no symbol has.
    """
    done, shift = 0, _U(64 - WINDOW)
    fast = count - LOOKUPS * MAX_SYMBOLS
    last_word = 8 * (len(stream) - 8)
    while done < count:
        if done < fast and position <= last_word:
            word = _load(stream, position >> 3) << _U(position & 7)  # type: ignore[call-arg]
            entry = _U(0)
            for _ in range(LOOKUPS):
                entry = windows[word >> shift]
                _store(decoded, done, entry)
                done += int((entry >> _U(48)) & _BYTE)
                bits = entry >> _U(56)
                word <<= bits
                position += int(bits)
            if entry:
                continue
        code = _next(_load_any(stream, position >> 3) << _U(position & 7), symbols, starts, lengths)
        if code == 0:
            return -1
        decoded[done] = code & 255
        done += 1
        position += code >> 8
    return position


@njit(nogil=True, cache=True)
def _join(raw: NDArray[np.uint8], symbols: NDArray[np.uint8], out: NDArray[np.uint16]) -> None:
    """Sign and low bits, uint8 [n], with the symbols between them: uint16 [n]."""
    for i in range(len(raw)):
        low, middle = np.uint16(raw[i]), np.uint16(symbols[i])
        out[i] = (
            ((low & np.uint16(0x80)) << np.uint16(8)) | (middle << np.uint16(7)) | (low & np.uint16(0x7F))
        )


@njit(nogil=True, cache=True)
def decode_blocks(
    first: int,
    last: int,
    stream: NDArray[np.uint8],
    begins: NDArray[np.int64],
    positions: NDArray[np.int64],
    windows: NDArray[np.uint64],
    symbols: NDArray[np.uint8],
    starts: NDArray[np.uint32],
    lengths: NDArray[np.uint8],
    raw: NDArray[np.uint8],
    out: NDArray[np.uint16],
) -> int:
    """Decode the blocks `first` to `last`.

    Args:
        stream: uint8 [bytes].
        begins: int64 [blocks + 1], the bit at which each block's first code begins; last, 8 * bytes.
        positions: int64 [blocks + 1], each block's first element; positions[-1] = n.
        windows, symbols, starts, lengths: `Tables`.
        raw: uint8 [n], sign and low bits.
        out: uint16 [n], written.

    Returns:
        -1, or the first block whose codes do not end where those of the next begin or, in the last, in the last byte.
    """
    decoded = np.empty(MOST + SLACK, np.uint8)
    for block in range(first, last):
        start = positions[block]
        count = positions[block + 1] - start
        end = _read(stream, begins[block], count, windows, symbols, starts, lengths, decoded)
        padding = 8 if block == len(begins) - 2 else 1
        if not 0 <= begins[block + 1] - end < padding:
            return block
        _join(raw[start : start + count], decoded, out[start : start + count])
    return -1


@njit(nogil=True, cache=True)
def wrong_gap(
    gaps: NDArray[np.uint8],
    stream: NDArray[np.uint8],
    begins: NDArray[np.int64],
    positions: NDArray[np.int64],
    windows: NDArray[np.uint64],
    symbols: NDArray[np.uint8],
    starts: NDArray[np.uint32],
    lengths: NDArray[np.uint8],
) -> int:
    """The first chunk whose gap, uint8 [chunks], is not where a code first begins in it, or -1.

    Chunks in which no code begins, all of them at the end, have a gap of 0, or that of where the last code ends. The
    other arguments are those of `decode_blocks`.
    """
    decoded = np.empty(MOST + SLACK, np.uint8)
    position, chunk = 0, -1
    for block in range(len(begins) - 1):
        position, count = begins[block], positions[block + 1] - positions[block]
        if _read(stream, position, count, windows, symbols, starts, lengths, decoded) < 0:
            return chunk + 1
        for i in range(count):
            if position >> 6 != chunk:
                chunk = position >> 6
                if chunk >= len(gaps) or gaps[chunk] != position & 63:
                    return chunk
            position += lengths[decoded[i]]
    for behind in range(chunk + 1, len(gaps)):
        if gaps[behind] != 0 and (behind != position >> 6 or gaps[behind] != position & 63):
            return behind
    return -1
