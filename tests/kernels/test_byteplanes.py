"""Planes of bytes: exact for all bits, smaller for weights."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modicum.errors import CheckpointError, MissingExtra
from modicum.kernels.byteplanes import DTYPES, compress_planes, decompress_planes

zstandard = pytest.importorskip("zstandard")


def weights(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)


@settings(deadline=None, max_examples=80)
@given(dtype=st.sampled_from(list(DTYPES)), data=st.binary(max_size=400))
def test_all_bits_come_back(dtype: torch.dtype, data: bytes) -> None:
    data = data[: len(data) // dtype.itemsize * dtype.itemsize]
    bits = torch.tensor(list(data), dtype=torch.uint8)
    weight = bits.view(dtype)
    frames = compress_planes(weight)
    assert len(frames) == dtype.itemsize
    assert torch.equal(decompress_planes(frames, weight.shape, dtype).view(torch.uint8), bits)


@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_come_back_and_the_first_plane_is_the_small_one(dtype: torch.dtype) -> None:
    weight = weights(300, 500, dtype=dtype)
    frames = compress_planes(weight)
    assert torch.equal(decompress_planes(frames, (300, 500), dtype), weight)
    assert len(frames[0]) < 0.8 * weight.numel()
    assert all(len(frame) > 0.95 * weight.numel() for frame in frames[1:])
    assert torch.equal(decompress_planes(compress_planes(weight.T), (500, 300), dtype), weight.T)


def test_smaller_than_zstandard_alone() -> None:
    weight = weights(400, 500)
    alone = zstandard.ZstdCompressor(level=3).compress(weight.view(torch.uint8).numpy())
    assert sum(map(len, compress_planes(weight))) < 0.95 * len(alone)


def test_a_frame_that_promises_too_much_is_not_opened() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(50_000_000))
    good = compress_planes(weights(10))[0]
    with pytest.raises(CheckpointError, match="50000000 bytes cannot hold 10"):
        decompress_planes([good, bomb], (10,), torch.bfloat16)
    with pytest.raises(CheckpointError, match="3 planes"):
        decompress_planes([good] * 3, (10,), torch.bfloat16)


def test_without_zstandard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtra, match="'zstandard'"):
        compress_planes(weights(10))
