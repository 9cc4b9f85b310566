"""Multi-scale binary spherical quantization: features <-> a list of bit maps.

A vector of d numbers is replaced by the signs of its components, scaled to unit length: one of 2^d codes without a
codebook, and each bit can be predicted by itself (Zhao et al., "Image and Video Tokenization with Binary Spherical
Quantization", arXiv 2406.07548).

    code = (2 bits - 1) / sqrt(d)        features ~ sum_k up(code_k)

Encoding peels the features from coarse to fine: at map k shrink what is left (area), take signs, blow the codes up
again, subtract. The original interpolates trilinearly over a time axis of length one, which is bilinear over the two
axes of an image. A token of the transformer stands for `patch` x `patch` positions of the feature map.

Legend: B images, d bits of a position, D = patch^2 d bits of a token, h w of a map, H W of the last map; maps of bits
and features are those of the feature map, `patch` times the token map along each side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from modicum.models.next_scale import Schedule

Size = tuple[int, int]


def grid(schedule: Schedule, patch: int) -> list[Size]:
    """Sizes of the maps of bits that belong to the token maps."""
    return [(patch * height, patch * width) for height, width in schedule.sizes]


def to_codes(bits: Tensor) -> Tensor:
    """Unit vectors of bits: bool `[B, h, w, d] -> float32 [B, d, h, w]`."""
    return (2 * bits.permute(0, 3, 1, 2).float() - 1) / math.sqrt(bits.shape[-1])


def to_bits(features: Tensor) -> Tensor:
    """Signs of features, True above 0: `[B, d, h, w] -> bool [B, h, w, d]`."""
    return features.permute(0, 2, 3, 1) > 0


def patchify(features: Tensor, patch: int) -> Tensor:
    """Features of positions as features of tokens: `[B, d, patch h, patch w] -> [B, h * w, D]`."""
    return F.pixel_unshuffle(features, patch).flatten(2).transpose(1, 2)


def unpatchify(tokens: Tensor, size: Size, patch: int) -> Tensor:
    """Bits of tokens as bits of positions.

    Args:
        tokens: bool `[B, h * w, D]`.
        size: h, w of the token map.
        patch: positions per token, along one side.

    Returns:
        bool `[B, patch h, patch w, d]`.
    """
    maps = tokens.transpose(1, 2).unflatten(2, size)  # [B, D, h, w]
    return F.pixel_shuffle(maps, patch).permute(0, 2, 3, 1)


def resize(features: Tensor, size: Size) -> Tensor:
    """Features `[B, d, h, w]` at another size, interpolated."""
    return features if tuple(features.shape[-2:]) == size else F.interpolate(features, size, mode="bilinear")


def running(bits: Sequence[Tensor], size: Size) -> list[Tensor]:
    """Features `[B, d, H, W]` after each of the given first maps.

    Args:
        bits: bool `[B, h, w, d]` per map.
        size: H, W.
    """
    sums: list[Tensor] = []
    for chosen in bits:
        added = resize(to_codes(chosen), size)
        sums.append(sums[-1] + added if sums else added)
    return sums


def teacher_input(bits: Sequence[Tensor], sizes: Sequence[Size], patch: int) -> Tensor:
    """The features so far at the size of maps 1, 2, ..., `[B, tokens of these maps, D]`.

    Args:
        bits: bool `[B, h, w, d]` of every map; the last one is not looked at.
        sizes: of the maps.
        patch: positions per token, along one side.
    """
    sums = running(bits[:-1], sizes[-1])
    maps = [patchify(resize(total, size), patch) for total, size in zip(sums, sizes[1:], strict=True)]
    first = bits[0]
    empty = first.new_zeros(len(first), 0, first.shape[-1] * patch**2, dtype=torch.float32)
    return torch.cat([empty, *maps], dim=1)


def quantize(features: Tensor, sizes: Sequence[Size]) -> tuple[list[Tensor], Tensor]:
    """Bits of every map, and the features that they add up to.

    Args:
        features: `[B, d, H, W]`.
        sizes: of the maps; the last one is H, W.

    Returns:
        Per map: bits, bool `[B, h, w, d]`; and their sum `[B, d, H, W]`.
    """
    bits, full = [], sizes[-1]
    total = torch.zeros_like(features)
    for size in sizes:
        rest = features - total
        bits.append(to_bits(rest if size == full else F.interpolate(rest, size, mode="area")))
        total = total + resize(to_codes(bits[-1]), full)
    return bits, total
