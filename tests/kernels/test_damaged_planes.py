"""Planes of bytes that were damaged, exchanged or made up end in a sentence, whatever happened to them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modicum.errors import CheckpointError
from modicum.kernels.byteplanes import DTYPES, compress_planes, decompress_planes

zstandard = pytest.importorskip("zstandard")

N = 3000
WEIGHTS = {
    dtype: (torch.randn(N, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype) for dtype in DTYPES
}
FRAMES = {dtype: compress_planes(weight) for dtype, weight in WEIGHTS.items()}
share = st.floats(0, 1, exclude_max=True)
damaged = settings(deadline=None, max_examples=120)


@pytest.fixture(params=list(DTYPES), ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    chosen: torch.dtype = request.param
    return chosen


def assert_refused(frames: list[bytes], dtype: torch.dtype, n: int = N) -> None:
    with pytest.raises(CheckpointError, match="plane") as caught:
        decompress_planes(frames, (n,), dtype)
    assert caught.value.hint


def replaced(dtype: torch.dtype, plane: int, frame: bytes) -> list[bytes]:
    frames = list(FRAMES[dtype])
    frames[plane % len(frames)] = frame
    return frames


@damaged
@given(dtype=st.sampled_from(list(DTYPES)), plane=st.integers(0, 3), at=share, bit=st.integers(0, 7))
def test_one_flipped_bit_never_gives_other_weights(
    dtype: torch.dtype, plane: int, at: float, bit: int
) -> None:
    """The checksum of a frame covers its plane; bits that mean nothing may flip."""
    frame = bytearray(FRAMES[dtype][plane % dtype.itemsize])
    frame[int(at * len(frame))] ^= 1 << bit
    try:
        weight = decompress_planes(replaced(dtype, plane, bytes(frame)), (N,), dtype)
    except CheckpointError as error:
        assert "plane" in str(error)  # noqa: PT017
        return
    assert torch.equal(weight, WEIGHTS[dtype])


@damaged
@given(dtype=st.sampled_from(list(DTYPES)), plane=st.integers(0, 3), kept=share)
def test_a_frame_that_was_cut_is_refused(dtype: torch.dtype, plane: int, kept: float) -> None:
    frame = FRAMES[dtype][plane % dtype.itemsize]
    assert_refused(replaced(dtype, plane, frame[: int(kept * len(frame))]), dtype)


@damaged
@given(plane=st.integers(0, 1), more=st.binary(min_size=1, max_size=40), before=st.booleans())
def test_nothing_may_stand_before_or_behind_a_frame(plane: int, more: bytes, before: bool) -> None:
    frame = FRAMES[torch.bfloat16][plane]
    assert_refused(replaced(torch.bfloat16, plane, more + frame if before else frame + more), torch.bfloat16)


@damaged
@given(noise=st.binary(max_size=200), magic=st.booleans())
def test_noise_is_no_frame(noise: bytes, magic: bool) -> None:
    frame = b"\x28\xb5\x2f\xfd" + noise if magic else noise
    assert_refused(replaced(torch.bfloat16, 0, frame), torch.bfloat16)


@damaged
@given(n=st.integers(0, 3 * N).filter(lambda n: n != N))
def test_another_number_of_weights_is_refused(n: int) -> None:
    assert_refused(FRAMES[torch.bfloat16], torch.bfloat16, n)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_planes_is_refused(count: int) -> None:
    assert_refused((FRAMES[torch.bfloat16] * 2)[:count], torch.bfloat16)


def test_planes_of_other_weights_of_the_same_size_are_other_weights(dtype: torch.dtype) -> None:
    """What a checksum per frame cannot see: two good frames in each other's place."""
    frames = FRAMES[dtype][::-1]
    weight = decompress_planes(frames, (N,), dtype)
    assert not torch.equal(weight.view(torch.uint8), WEIGHTS[dtype].view(torch.uint8))
    assert torch.equal(decompress_planes(frames[::-1], (N,), dtype), WEIGHTS[dtype])


def without_size() -> bytes:
    return bytes(zstandard.ZstdCompressor(write_content_size=False).compress(bytes(N)))


def of_size(n: int) -> Callable[[], bytes]:
    return lambda: bytes(zstandard.ZstdCompressor().compress(bytes(n)))


def with_a_lie() -> bytes:
    """A frame of 30 million bytes whose header says `N`: the four bytes of its size are changed."""
    frame = bytearray(of_size(30_000_000)())
    place = frame.index((30_000_000).to_bytes(4, "little"))
    frame[place : place + 4] = N.to_bytes(4, "little")
    return bytes(frame)


@pytest.mark.parametrize("bomb", [without_size, of_size(30_000_000), of_size(N + 1), of_size(0), with_a_lie])
@pytest.mark.parametrize("plane", [0, 1])
def test_bombs_take_no_memory(bomb: Callable[[], bytes], plane: int) -> None:
    frame = bomb()
    tracemalloc.start()
    try:
        assert_refused(replaced(torch.bfloat16, plane, frame), torch.bfloat16)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_number_of_weights_beyond_all_memory_is_refused_before_there_is_room() -> None:
    assert_refused(FRAMES[torch.bfloat16], torch.bfloat16, 10**15)
