"""4-bit weights times few activations on a CPU, with the kernel that PyTorch ships for it.

Generating text multiplies a matrix by one token at a time, and then the time goes into reading the matrix:
4 bits per weight instead of 16 make it 2.5 to 4 times as fast as a bfloat16 product, measured on one
AVX-512 core. The kernel does not profit from more tokens; from about 64 on, expanding the matrix and
multiplying it as bfloat16 is faster.

The kernel wants codes in a layout of its own and w = (code - 8) * scale + offset, code unsigned. Only
bfloat16 is fast, and only with AVX2 or AVX-512; for everything else `is_usable` says no.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modicum.kernels.grids import IntegerScheme

MOST_TOKENS = 64
"""From here on expanding the matrix is faster."""

_GROUP_SIZES = (32, 64, 128, 256)
_OUTPUTS = 16  # rows that the kernel handles together
TILE = 64 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 32
"""Rows that it stores together, by the width of the processor's registers."""


def suits(out_features: int, in_features: int, scheme: IntegerScheme) -> bool:
    """Whether the kernel exists on this machine and takes a matrix of this shape and grid."""
    span = scheme.span(in_features)
    return (
        scheme.bits == 4
        and span in _GROUP_SIZES
        and in_features % span == 0
        and out_features % _OUTPUTS == 0
        and hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")
        and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    )


def is_usable(x: Tensor, scale: Tensor) -> bool:
    """Whether the kernel is right and fast for `x` [..., in]: few, bfloat16, on a CPU, without gradient."""
    few = 0 < x.numel() <= MOST_TOKENS * x.shape[-1]
    plain = x.is_cpu and scale.is_cpu and x.dtype == scale.dtype == torch.bfloat16
    return few and plain and not (torch.is_grad_enabled() and x.requires_grad)


def repack(codes: Tensor, scale: Tensor, zero_point: Tensor | None) -> tuple[Tensor, Tensor]:
    """Codes and grid in the layout of the kernel.

    Args:
        codes: int8 [out, in] in [-8, 7].
        scale: bfloat16 [out, groups].
        zero_point: int32 [out, groups] or None.

    Returns:
        codes uint8 [out, in / 2] and scale with offset bfloat16 [groups, out, 2].
    """
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32) + 8, 1)
    offset = torch.zeros_like(scale) if zero_point is None else (-zero_point * scale.float()).to(scale.dtype)
    return packed, torch.stack((scale, offset), dim=-1).transpose(0, 1).contiguous()


def is_known_layout(packed: Tensor) -> bool:
    """Whether `unpack` may be tried: the kernel arranges whole tiles of rows, and any rest in another way."""
    return packed.shape[0] % TILE == 0


def unpack(packed: Tensor) -> Tensor:
    """The signed codes, int8 [out, in], out of the kernel's layout.

    A tile is stored column by column: row r in the low, row r + tile / 2 in the high half of a byte.
    """
    rows, columns = packed.shape[0], 2 * packed.shape[1]
    tiles = packed.view(rows // TILE, columns, TILE // 2)  # [tiles, in, tile / 2]
    halves = torch.stack((tiles & 15, tiles >> 4), dim=1)  # [tiles, 2, in, tile / 2]
    return halves.transpose(2, 3).reshape(rows, columns).view(torch.int8) - 8


def matmul(x: Tensor, packed: Tensor, grid: Tensor) -> Tensor:
    """x bfloat16 [..., in] times the transposed matrix of `repack`: bfloat16 [..., out]."""
    group_size = x.shape[-1] // grid.shape[0]
    flat = x.reshape(-1, x.shape[-1])
    product = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, packed, group_size, grid)
    return product.view(*x.shape[:-1], -1)
