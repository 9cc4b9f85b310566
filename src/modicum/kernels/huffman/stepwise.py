"""Decode with tensor operations only: every chunk is a lane, and all lanes read one code per step.

This is what a GPU does, written in PyTorch. It runs wherever PyTorch does, needs no compiler, reads every gap (the
compiled loops read one per block), and is slow: it serves where Numba or Triton is missing, and to check the others.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from modicum.kernels.huffman.layout import (
    BLOCK_BYTES,
    CHUNK_BITS,
    CHUNKS,
    GAP_BYTES,
    Prepared,
    refuse,
    unpacked_gaps,
)

BLOCKS = 64
"""Blocks that are decoded together: 32768 lanes."""


def decode_stepwise(prepared: Prepared, out: Tensor) -> None:
    """Decode into `out`, int16 [n], on its device.

    Raises:
        CheckpointError: a chunk's codes do not end where those of the next begin, or their number is wrong.
    """
    for first in range(0, prepared.blocks, BLOCKS):
        last = min(first + BLOCKS, prepared.blocks)
        start, stop = int(prepared.positions[first]), int(prepared.positions[last])
        raw = prepared.encoded.sign_mantissa[start:stop].short()
        symbols = _symbols(prepared, first, last).short()
        out[start:stop] = (raw & 0x80) << 8 | symbols << 7 | raw & 0x7F


def _symbols(prepared: Prepared, first: int, last: int) -> Tensor:
    """The symbols of the blocks `first` to `last`, int16 [positions[last] - positions[first]]."""
    encoded, name = prepared.encoded, prepared.name
    stream = encoded.encoded_exponent[first * BLOCK_BYTES : last * BLOCK_BYTES + 8]
    behind = min(last + 1, prepared.blocks)  # the next block's gaps are looked at, too
    gaps = unpacked_gaps(encoded.gaps[first * GAP_BYTES : behind * GAP_BYTES])
    lanes = (last - first) * CHUNKS
    found, counts, ends = _read_lanes(_windows(stream), gaps[:lanes], prepared)
    held = counts.view(-1, CHUNKS)
    wanted = torch.from_numpy(np.diff(prepared.positions[first : last + 1])).to(held.device)  # [blocks]
    left = wanted[:, None] - (held.cumsum(1) - held)  # weights of the block that are due when a lane begins
    kept = torch.minimum(held, left.clamp(min=0))  # the lanes at the end read what fills the last byte, too
    full = prepared.firsts[first + 1 : last + 1] == prepared.firsts[-1]
    if not ((kept.sum(1) == wanted) & (full | (held.sum(1) == wanted))).all():
        refuse(name, f"blocks {first} to {last - 1} hold another number of codes than output_positions says")
    kept, following = kept.flatten(), gaps[1 : lanes + 1]
    inside = (kept == counts)[: len(following)] & (F.pad(kept[1:], (0, 1), value=1) > 0)[: len(following)]
    valid = torch.arange(len(found), device=found.device)[:, None] < kept  # [steps, lanes]
    if (inside & (ends[: len(following)] != following)).any() or (found.masked_fill(~valid, 0) < 0).any():
        refuse(name, f"gaps of blocks {first} to {last - 1} disagree with the codes")
    return found.T[valid.T]


def _windows(stream: Tensor) -> Tensor:
    """For every byte of the stream the number that it begins, of 40 bits, zeros beyond the end: int64 [bytes]."""
    padded = F.pad(stream, (0, 4)).long()
    return sum((padded[i : i + len(stream)] << (32 - 8 * i) for i in range(5)), torch.zeros_like(padded[:-4]))


def _read_lanes(windows: Tensor, gap: Tensor, prepared: Prepared) -> tuple[Tensor, Tensor, Tensor]:
    """Let every lane read the codes that begin in its chunk.

    Args:
        windows: int64 [bytes] as `_windows` gives them.
        gap: int64 [lanes], where each lane begins.
        prepared: the code.

    Returns:
        symbols int16 [steps, lanes], -1 where no code begins; their numbers int64 [lanes]; and how far into the next
        chunk each lane's last code reaches, int64 [lanes].
    """
    device = windows.device
    symbols = torch.from_numpy(prepared.tables.symbols).to(device)
    starts = torch.from_numpy(prepared.tables.starts.astype(np.int64)).to(device)
    lengths = torch.from_numpy(prepared.code.lengths.astype(np.int64)).to(device)
    base = torch.arange(len(gap), device=device) * CHUNK_BITS
    bit, counts, found = gap.clone(), torch.zeros_like(gap), []
    in_stream = base + gap < 8 * len(windows)
    while (active := (bit < CHUNK_BITS) & in_stream).any():
        place = base + bit
        word = windows[(place >> 3).clamp(max=len(windows) - 1)] >> (8 - (place & 7)) & 0xFFFFFFFF
        at = torch.searchsorted(starts, word, right=True) - 1
        symbol = symbols[at.clamp(min=0)].long()
        length = lengths[symbol]
        known = (at >= 0) & (word < starts[at.clamp(min=0)] + (1 << (32 - length)))
        found.append(torch.where(known, symbol, -1).short())
        bit, counts = torch.where(active, bit + length, bit), counts + active
    return torch.stack(found), counts, bit - CHUNK_BITS
