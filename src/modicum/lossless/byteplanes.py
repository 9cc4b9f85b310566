"""Planes of bytes and Zstandard: for storing and sending weights, not for running them.

The bytes of equal rank of all weights of a tensor are gathered, the exponents in one plane, and every plane is
compressed by Zstandard. ZipNN gathers in the same way and has a Huffman coder of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from modicum.kernels.byteplanes import DTYPES, LEVEL, compress_planes
from modicum.lossless.bound import bound
from modicum.method import Coding, Paper, StorageMethod
from modicum.models import Anatomy


class BytePlanes(StorageMethod):
    """Compress exponents, signs and mantissas apart with Zstandard; for storage and transfer, every bit comes back.

    Every tensor is a group of its own. `modicum.load` expands it; `modicum export --plain` writes the original.
    """

    paper: ClassVar[Paper] = Paper(
        "ZipNN: Lossless Compression for AI Models", "IEEE CLOUD 2025", "2411.05239"
    )
    level: int = Field(LEVEL, ge=1, le=22, description="of Zstandard; higher ones gain next to nothing")

    def groups(self, anatomy: Anatomy) -> dict[str, tuple[str, ...]]:
        return {name: (name,) for name, tensor in anatomy.model.named_parameters() if tensor.dim() >= 2}

    def encode(self, tensors: Sequence[Tensor]) -> Coding:
        weight = torch.cat([tensor.reshape(-1) for tensor in tensors])
        if weight.dtype not in DTYPES:
            return Coding({}, 0.0, f"weights of {weight.dtype} have no planes")
        least = bound(tensors)
        frames = compress_planes(weight, self.level)
        if sum(map(len, frames)) >= weight.nbytes:
            return Coding({}, least, "it would not become smaller")
        planes = (torch.frombuffer(bytearray(frame), dtype=torch.uint8) for frame in frames)
        return Coding({f"plane{rank}": plane for rank, plane in enumerate(planes)}, least)
