"""Weights as planes of bytes, each compressed by Zstandard: for storage, not for running.

Compressors look for repeated bytes and find few in weights, because the bytes of a weight that compress lie between
those that do not. Gathering the bytes of equal rank gives one plane per rank. One bit to the left, so that the sign
comes last, the first plane holds the whole exponent of bfloat16 and float32 (of float16 the exponent and three bits)
and shrinks to a third, while the others stay as they are.

    ZipNN: Lossless Compression for AI Models (arXiv 2411.05239)

ZipNN gathers the bytes in the same way and compresses them with a Huffman coder of its own. Every frame here carries
a checksum of its plane, so that damage ends in an error and not in other weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modicum.errors import CheckpointError, MissingExtra
from modicum.kernels.chunks import row_chunks

DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.bfloat16: np.dtype("<u2"),
    torch.float16: np.dtype("<u2"),
    torch.float32: np.dtype("<u4"),
}

LEVEL = 3
"""Of Zstandard: its default; higher ones gain next to nothing here."""


def compress_planes(weight: Tensor, level: int = LEVEL) -> list[bytes]:
    """Compress a weight, bit for bit.

    Args:
        weight: on a CPU, of any shape, a dtype of `DTYPES`.
        level: of Zstandard, 1 to 22.

    Returns:
        One Zstandard frame per byte of the dtype, the plane with the exponents first.

    Raises:
        MissingExtra: the package `zstandard` is not installed.
    """
    compressor = _zstandard().ZstdCompressor(level=level, write_checksum=True)
    word = DTYPES[weight.dtype]
    words = weight.detach().reshape(-1).contiguous().view(torch.uint8).numpy().view(word)
    planes = np.empty((word.itemsize, len(words)), np.uint8)
    for some in row_chunks(len(words), 2 * word.itemsize):
        turned = words[some] << 1 | words[some] >> (8 * word.itemsize - 1)
        for rank, plane in enumerate(reversed(planes)):
            plane[some] = turned >> (8 * rank)
    return [compressor.compress(plane) for plane in planes]


def decompress_planes(frames: Sequence[bytes], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The inverse of `compress_planes`: a weight of that shape and dtype.

    Raises:
        CheckpointError: a frame is damaged, or holds another number of bytes.
        MissingExtra: the package `zstandard` is not installed.
    """
    word, n = DTYPES[dtype], int(np.prod(shape, dtype=np.int64))
    if len(frames) != word.itemsize:
        raise CheckpointError(f"{len(frames)} planes cannot be weights of {dtype}.", "Fetch the file again.")
    for frame in frames:
        _check_size(frame, n)  # before there is room for any of them
    planes = np.empty((word.itemsize, n), np.uint8)
    for plane, frame in zip(planes, frames, strict=True):
        plane[:] = _plane(frame, n)
    words = np.empty(n, word)
    for some in row_chunks(n, 2 * word.itemsize):
        turned = planes[0, some].astype(word)
        for plane in planes[1:]:
            turned = turned << 8 | plane[some]
        words[some] = turned >> 1 | turned << (8 * word.itemsize - 1)
    return torch.from_numpy(words.view(np.uint8)).view(dtype).view(*shape)


def _check_size(frame: bytes, n: int) -> None:
    """Refuse a frame whose header does not promise `n` bytes: it may promise more than there is memory."""
    zstandard = _zstandard()
    try:
        size = zstandard.frame_content_size(frame)
    except zstandard.ZstdError as error:
        raise CheckpointError(f"A plane of bytes is damaged: {error}.", "Fetch the file again.") from error
    if size != n:
        promised = f"{size} bytes" if size >= 0 else "unknown size"
        raise CheckpointError(f"A plane of {promised} cannot hold {n} weights.", "Fetch the file again.")


def _plane(frame: bytes, n: int) -> NDArray[np.uint8]:
    """The `n` bytes of a frame that promises as many; room is made for no more, and nothing may follow it."""
    zstandard = _zstandard()
    try:
        data = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CheckpointError(f"A plane of bytes is damaged: {error}.", "Fetch the file again.") from error
    if len(data) != n:
        raise CheckpointError(
            f"A plane of {len(data)} bytes cannot hold {n} weights.", "Fetch the file again."
        )
    return np.frombuffer(data, np.uint8)


def _zstandard() -> ModuleType:
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise MissingExtra.of("zstandard", "lossless", "Compressing planes of bytes") from error
    return zstandard
