"""Decode on a GPU: one program per block, one lane per chunk of 8 bytes, every lane twice.

A lane does not know where its weights go before all lanes before it have counted theirs. So every lane first reads the
codes of its chunk and counts them; a prefix sum over the block turns the counts into places; then every lane reads its
codes again, joins each with its raw byte and writes the weight. Twice reading costs less than keeping.

A lane holds its chunk and the four bytes behind it as two overlapping 64-bit words, so the next 32 bits are one shift
away wherever it stands. One look-up by `WINDOW` bits gives symbol and length of nearly all codes; longer ones walk the
published tables. Every step moves on by at least one bit and every access is masked by the size of its array, so that
a damaged stream gives wrong weights at worst; nothing here can tell, which is why files are verified on a processor.

Imported only when it is needed, because Triton does not exist everywhere.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from modicum.kernels.huffman.layout import CHUNKS, Prepared
from modicum.kernels.huffman.tables import WINDOW

STEPS = 4
"""Codes that are read between two questions whether all lanes are done."""

WARPS = CHUNKS // 32
"""One thread per lane: with more lanes per thread the unrolled code outgrows the cache for instructions."""


def decode_gpu(prepared: Prepared, out: Tensor) -> None:
    """Decode into `out`, int16 [n], on the GPU where the arrays lie."""
    encoded, lanes = prepared.encoded, prepared.lanes
    with torch.cuda.device_of(out):
        _decode_block[(prepared.blocks,)](
            encoded.encoded_exponent,
            encoded.sign_mantissa,
            encoded.gaps,
            prepared.firsts,
            lanes.first,
            lanes.luts,
            out,
            encoded.encoded_exponent.numel(),
            encoded.gaps.numel(),
            len(lanes.luts) - 1,
            lanes=CHUNKS,
            window=WINDOW,
            steps=STEPS,
            num_warps=WARPS,
        )


@triton.jit
def _decode_block(  # type: ignore[no-untyped-def]
    stream,
    raw,
    gaps,
    firsts,
    first,
    luts,
    out,
    stream_bytes,
    gap_bytes,
    rows,
    lanes: tl.constexpr,
    window: tl.constexpr,
    steps: tl.constexpr,
):
    """One block: uint8 `stream`, `raw`, `gaps`, `luts`; int32 `firsts`; int16 `first` and `out`."""
    block = tl.program_id(0)
    chunk = block * lanes + tl.arange(0, lanes)
    gap = _gap(gaps, chunk, gap_bytes)
    head = _bytes(stream, chunk * 8, stream_bytes, 8)  # bits 0 to 63 of the chunk
    tail = (head << 32) | _bytes(stream, chunk * 8 + 8, stream_bytes, 4)  # bits 32 to 95

    bit, count = gap, tl.zeros_like(gap)
    while tl.min(bit, 0) < 64:
        for _step in tl.static_range(steps):
            _, length = _next(head, tail, bit, first, luts, rows, window)
            count += tl.where(bit < 64, 1, 0)
            bit += tl.where(bit < 64, length, 0)

    place = tl.load(firsts + block) + tl.cumsum(count, 0) - count
    end = tl.load(firsts + block + 1)
    bit = gap
    while tl.min(bit, 0) < 64:
        for _step in tl.static_range(steps):
            symbol, length = _next(head, tail, bit, first, luts, rows, window)
            due = (bit < 64) & (place < end)
            low = tl.load(raw + place, mask=due, other=0).to(tl.int32)
            weight = ((low & 0x80) << 8) | (symbol << 7) | (low & 0x7F)
            tl.store(out + place, weight.to(tl.int16), mask=due)
            place += tl.where(bit < 64, 1, 0)
            bit += tl.where(bit < 64, length, 0)


@triton.jit
def _gap(gaps, chunk, gap_bytes):  # type: ignore[no-untyped-def]
    """The bit at which the first code of a chunk begins: 5 bits, in one byte or across two."""
    bit = chunk * 5
    byte = bit >> 3
    high = tl.load(gaps + byte, mask=byte < gap_bytes, other=0).to(tl.int32)
    low = tl.load(gaps + byte + 1, mask=byte + 1 < gap_bytes, other=0).to(tl.int32)
    return (((high << 8) | low) >> (11 - (bit & 7))) & 31


@triton.jit
def _bytes(stream, at, stream_bytes, number: tl.constexpr):  # type: ignore[no-untyped-def]
    """`number` bytes from `at` on as one uint64, the first most significant; zeros beyond the end."""
    word = tl.zeros_like(at).to(tl.uint64)
    for i in tl.static_range(number):
        byte = tl.load(stream + at + i, mask=at + i < stream_bytes, other=0)
        word = (word << 8) | byte.to(tl.uint64)
    return word


@triton.jit
def _next(head, tail, bit, first, luts, rows, window: tl.constexpr):  # type: ignore[no-untyped-def]
    """Symbol and length of the code at `bit`; where that is behind the chunk, of anything."""
    ahead = (tl.where(bit < 32, head, tail) >> (32 - (bit & 31)).to(tl.uint64)).to(tl.uint32)
    entry = tl.load(first + (ahead >> (32 - window)).to(tl.int32)).to(tl.int32)
    long = entry == 0
    symbol = tl.load(luts + (ahead >> 24).to(tl.int32), mask=long, other=0).to(tl.int32)
    for shift in tl.static_range(16, -1, -8):
        further = 256 * (256 - symbol) + ((ahead >> shift) & 0xFF).to(tl.int32)
        follows = long & (symbol >= 240)
        symbol = tl.where(follows, tl.load(luts + further, mask=follows, other=0).to(tl.int32), symbol)
    length = tl.load(luts + 256 * rows + symbol, mask=long, other=0).to(tl.int32)
    symbol = tl.where(long, symbol, entry & 0xFF)
    return symbol, tl.maximum(tl.where(long, length, entry >> 8), 1)
