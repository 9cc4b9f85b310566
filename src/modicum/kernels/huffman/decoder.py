"""From DFloat11 back to weights, on whatever device the arrays lie."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from modicum.errors import MissingExtra
from modicum.kernels.huffman.compiled import compiled
from modicum.kernels.huffman.layout import Prepared, refuse, unpacked_gaps
from modicum.kernels.huffman.nvrtc import decode_nvrtc
from modicum.kernels.huffman.stepwise import decode_stepwise


def decode(prepared: Prepared, out: Tensor | None = None, threads: int = 1) -> Tensor:
    """All weights of a group, bit for bit.

    On a CPU by compiled loops, blocks side by side; on an NVIDIA GPU by a CUDA kernel, on others in Triton. Where
    Numba or Triton is missing, by tensor operations that give the same a hundred times slower.

    Args:
        prepared: the group.
        out: [n] of the group's dtype and device, contiguous, to write to; None makes one.
        threads: on a CPU, how many blocks to decode at a time.

    Returns:
        `out`, [n]; `tensor_split(split_positions)` gives the single tensors.

    Raises:
        CheckpointError: the stream does not hold as many codes as it should.
        ValueError: `out` is of another size, type or device.
    """
    encoded = prepared.encoded
    n, device = encoded.sign_mantissa.numel(), encoded.sign_mantissa.device
    out = torch.empty(n, dtype=encoded.dtype, device=device) if out is None else out
    fits = out.shape == (n,) and out.is_contiguous() and (out.dtype, out.device) == (encoded.dtype, device)
    if not fits:
        raise ValueError(f"{n} weights of {encoded.dtype} on {device} cannot be decoded into this tensor")
    if encoded.low is None:
        _decode_words(prepared, out.view(torch.int16), threads)
        return out
    words = torch.empty(n, dtype=torch.int16, device=device)
    _decode_words(prepared, words, threads)
    halves = out.view(torch.int16).view(n, 2)  # little-endian: the lower half comes first
    halves[:, 0], halves[:, 1] = encoded.low, words
    return out


def _decode_words(prepared: Prepared, out: Tensor, threads: int) -> None:
    """The 16-bit words of a group into `out`, int16 [n]."""
    try:
        if out.is_cuda:
            _decode_on_gpu(prepared, out)
        else:
            decode_compiled(prepared, out, threads)
    except (MissingExtra, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != "triton":
            raise
        decode_stepwise(prepared, out)


def _decode_on_gpu(prepared: Prepared, out: Tensor) -> None:
    if torch.version.cuda and decode_nvrtc(prepared, out):
        return
    from modicum.kernels.huffman.gpu import decode_gpu

    decode_gpu(prepared, out)


@lru_cache
def _helpers(threads: int) -> ThreadPoolExecutor:
    """Threads beside the caller's, which wait for the next group instead of being started for each."""
    return ThreadPoolExecutor(threads, thread_name_prefix="huffman")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_helpers.cache_clear)  # a child has none of these threads


def check_gaps(prepared: Prepared) -> None:
    """Compare every gap with the codes of a group on a CPU; decoding there reads only the first gap of a block.

    Raises:
        CheckpointError: a gap is not where the first code of its chunk begins, or the stream cannot be read.
        MissingExtra: Numba is not installed.
    """
    encoded, tables = prepared.encoded, prepared.tables
    gaps = unpacked_gaps(encoded.gaps).to(torch.uint8).numpy()
    places = (encoded.encoded_exponent.numpy(), prepared.begins, prepared.positions)
    code = (tables.windows, tables.symbols, tables.starts, tables.lengths)
    chunk = compiled().wrong_gap(gaps, *places, *code)
    if chunk >= 0:
        refuse(prepared.name, f"the gap of chunk {chunk} is not where its first code begins")


def decode_compiled(prepared: Prepared, out: Tensor, threads: int = 1) -> None:
    """Decode with the compiled loops into `out`, int16 [n] on a CPU.

    Raises:
        CheckpointError: a block's codes do not end where the next block's begin.
        MissingExtra: Numba is not installed.
    """
    encoded, tables, loops = prepared.encoded, prepared.tables, compiled()
    stream, raw = encoded.encoded_exponent.numpy(), encoded.sign_mantissa.numpy()
    places = (stream, prepared.begins, prepared.positions)
    code = (tables.windows, tables.symbols, tables.starts, tables.lengths)

    def some(blocks: tuple[int, int]) -> int:
        return int(loops.decode_blocks(*blocks, *places, *code, raw, out.numpy().view(np.uint16)))

    threads = max(1, min(threads, prepared.blocks))
    mine, *others = pairwise(np.linspace(0, prepared.blocks, threads + 1).astype(int).tolist())
    found = [_helpers(threads - 1).submit(some, blocks) for blocks in others]
    wrong = max(some(mine), *(each.result() for each in found), -1)
    if wrong >= 0:
        refuse(prepared.name, f"the codes of block {wrong} do not end where those of the next begin")
