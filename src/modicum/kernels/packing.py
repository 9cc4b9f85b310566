"""Small unsigned integers and masks, packed into words without wasted bits.

A row of `k` codes of `bits` bits becomes one bit stream: code `i` occupies the bits `[i * bits, (i + 1) *
bits)`, least significant bit first, and may straddle two words. This is the `pack-quantized` layout of
compressed-tensors 0.20, so the bytes can be written into such a checkpoint as they are.

Eight codes always fill `bits` whole bytes. Packing therefore merges neighbours pairwise into an integer of
up to 64 bits, three times at most, and keeps its low bytes; nothing loops over codes. Words are
little-endian, as in every safetensors file and on every machine that PyTorch supports.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from modicum.kernels.chunks import by_rows

_WIDER = {torch.uint8: torch.int16, torch.int16: torch.int32, torch.int32: torch.int64}
_NARROWER = {wide: narrow for narrow, wide in _WIDER.items()}


def packed_words(k: int, bits: int) -> int:
    """How many int32 words hold `k` codes of `bits` bits."""
    return -(-k * bits // 32)


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Pack unsigned codes into a dense bit stream per row.

    Args:
        codes: integers in [0, 2**bits), any integer dtype, [rows, k].
        bits: 1 to 8.

    Returns:
        int32 [rows, ceil(k * bits / 32)]; the bits behind the last code are zero.
    """
    k = codes.shape[1]

    def some_rows(codes: Tensor) -> Tensor:
        padded = F.pad(codes.to(torch.uint8).contiguous(), (0, -k % 32))
        words = _rowwise(_pack_bytes(padded, bits)).view(torch.int32)  # [rows, ceil(k / 32) * bits]
        return words[:, : packed_words(k, bits)].contiguous()

    return by_rows(some_rows, codes, row_bytes=2 * k)


def unpack_bits(packed: Tensor, bits: int, k: int) -> Tensor:
    """The inverse of `pack_bits`.

    Args:
        packed: int32 [rows, ceil(k * bits / 32)].
        bits: 1 to 8.
        k: codes per row.

    Returns:
        uint8 [rows, k], each in [0, 2**bits).
    """

    def some_rows(packed: Tensor) -> Tensor:
        padded = _rowwise(F.pad(packed, (0, -packed.shape[1] % bits)))
        return _unpack_bytes(padded.view(torch.uint8), bits)[:, :k].contiguous()

    return by_rows(some_rows, packed, row_bytes=2 * k)


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a bool mask [rows, k] into uint8 [rows, ceil(k / 8)]; bit j of byte i is column 8 i + j."""

    def some_rows(mask: Tensor) -> Tensor:
        return _rowwise(_pack_bytes(F.pad(mask.to(torch.uint8).contiguous(), (0, -mask.shape[1] % 8)), 1))

    return by_rows(some_rows, mask, row_bytes=2 * mask.shape[1])


def unpack_mask(packed: Tensor, k: int) -> Tensor:
    """The inverse of `pack_mask`: uint8 [rows, ceil(k / 8)] to bool [rows, k]."""
    return by_rows(lambda some: _unpack_bytes(some, 1)[:, :k].to(torch.bool), packed, row_bytes=2 * k)


def _pack_bytes(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [rows, k], k a multiple of 8, to bytes [rows, k * bits / 8]."""
    whole = 8 % bits == 0  # codes never straddle a byte
    merged, width, stop = codes, bits, 8 if whole else 8 * bits
    while width < stop:
        wide = merged.dtype if whole else _WIDER[merged.dtype]
        merged = merged[:, 0::2].to(wide) | (merged[:, 1::2].to(wide) << width)
        width *= 2
    if whole:
        return merged
    low_bytes = _rowwise(merged).view(torch.uint8).unflatten(1, (-1, 8))[..., :bits]
    return low_bytes.flatten(1)


def _unpack_bytes(packed: Tensor, bits: int) -> Tensor:
    """bytes [rows, n], n a multiple of `bits`, to uint8 codes [rows, 8 * n / bits]."""
    whole = 8 % bits == 0
    if whole:
        merged, width = packed, 8
    else:
        padded = F.pad(packed.unflatten(1, (-1, bits)), (0, 8 - bits))  # [rows, k / 8, 8]
        merged, width = padded.view(torch.int64).squeeze(-1), 8 * bits
    while width > bits:
        width //= 2
        halves = torch.stack((merged & ((1 << width) - 1), merged >> width), dim=-1).flatten(-2)
        merged = halves if whole else halves.to(_NARROWER[halves.dtype])
    return merged


def _rowwise(values: Tensor) -> Tensor:
    """Row after row in memory: `contiguous` leaves the stride of a single row or column as it is."""
    if values.stride() == (values.shape[1], 1):
        return values
    return values.clone(memory_format=torch.contiguous_format)
