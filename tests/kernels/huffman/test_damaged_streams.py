"""Damaged groups end in a sentence or in wrong weights, never outside of an array."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modicum.errors import CheckpointError
from modicum.kernels.huffman.decoder import check_gaps, decode
from modicum.kernels.huffman.encoder import encode
from modicum.kernels.huffman.layout import Encoded, packed_gaps, prepare, unpacked_gaps
from modicum.kernels.huffman.proof import check_written
from modicum.kernels.huffman.stepwise import decode_stepwise

GUARD = 4096
FIELDS = ("luts", "encoded_exponent", "sign_mantissa", "gaps", "output_positions", "split_positions")


def group(n: int = 30_000) -> Encoded:
    weight = (torch.randn(n, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    encoded = encode([weight[: n // 3], weight[n // 3 :]])
    assert encoded is not None
    return encoded


WHOLE = group()


def decode_guarded(encoded: Encoded) -> None:
    """Decode in all ways into the middle of a larger tensor, whose margins must stay as they are."""
    prepared = prepare(encoded)
    n = encoded.sign_mantissa.numel()
    around = torch.full((n + 2 * GUARD,), 7.0, dtype=torch.bfloat16)
    ways: list[Callable[[], object]] = [
        lambda: decode(prepared, around[GUARD : GUARD + n], threads=2),
        lambda: decode_stepwise(prepared, around[GUARD : GUARD + n].view(torch.int16)),
        lambda: check_gaps(prepared),
    ]
    for way in ways:
        with suppress(CheckpointError):
            way()
        assert (around[:GUARD] == 7).all()
        assert (around[GUARD + n :] == 7).all()


@settings(deadline=None, max_examples=40)
@given(
    field=st.sampled_from(FIELDS[:5]),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=20
    ),
)
def test_changed_bytes(field: str, changes: list[tuple[float, int]]) -> None:
    tensor = getattr(WHOLE, field).clone()
    for where, value in changes:
        tensor.view(-1)[int(where * tensor.numel())] = value
    with suppress(CheckpointError):
        decode_guarded(replace(WHOLE, **{field: tensor}))


@settings(deadline=None, max_examples=40)
@given(field=st.sampled_from(FIELDS), kept=st.floats(0, 1.3))
def test_cut_and_lengthened_arrays(field: str, kept: float) -> None:
    tensor = getattr(WHOLE, field)
    size = int(kept * len(tensor))
    longer = torch.cat(
        [tensor, torch.zeros((max(0, size - len(tensor)), *tensor.shape[1:]), dtype=tensor.dtype)]
    )
    try:
        decode_guarded(replace(WHOLE, **{field: longer[:size]}))
    except CheckpointError:
        assert size != len(tensor)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), luts=st.booleans())
def test_random_arrays(seed: int, luts: bool) -> None:
    """Streams of noise under true tables, and noise as tables."""
    noise = torch.Generator().manual_seed(seed)

    def random(like: Tensor) -> Tensor:
        return torch.randint(0, 256, like.shape, dtype=torch.uint8, generator=noise)

    changed = {"luts": random(WHOLE.luts)} if luts else {}
    changed |= {name: random(getattr(WHOLE, name)) for name in ("encoded_exponent", "gaps")}
    try:
        decode_guarded(replace(WHOLE, **changed))
    except CheckpointError:
        assert luts


def with_positions(change: Callable[[np.ndarray], None]) -> Tensor:
    positions = WHOLE.output_positions.numpy().copy().view(np.uint32)
    change(positions)
    return torch.from_numpy(positions.view(np.uint8))


def put(at: int, value: int) -> Callable[[np.ndarray], None]:
    def change(positions: np.ndarray) -> None:
        positions[at] = value

    return change


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"luts": WHOLE.luts[0]}, "luts is torch.uint8 with 1 dimensions"),
        ({"gaps": WHOLE.gaps.short()}, "gaps is torch.int16"),
        ({"split_positions": WHOLE.split_positions.int()}, "split_positions is torch.int32"),
        ({"sign_mantissa": WHOLE.sign_mantissa.repeat(2)[::2]}, "sign_mantissa is not contiguous"),
        ({"dtype": torch.float64}, "weights of torch.float64"),
        ({"dtype": torch.float32}, "weights of torch.float32 need lower halves"),
        ({"low": torch.zeros(5, dtype=torch.int16)}, "torch.bfloat16 have no lower halves"),
        ({"dtype": torch.float32, "low": torch.zeros(5, dtype=torch.int16)}, "low holds 5"),
        ({"output_positions": WHOLE.output_positions[:-1]}, "output_positions holds"),
        ({"output_positions": WHOLE.output_positions[:4]}, "output_positions holds 4 bytes"),
        ({"output_positions": WHOLE.output_positions[:-4]}, "blocks, output_positions counts"),
        ({"output_positions": with_positions(put(0, 1))}, "does not lead from 0"),
        ({"output_positions": with_positions(put(1, 2**32 - 1))}, "does not lead from 0"),
        ({"output_positions": with_positions(put(-1, 5))}, "does not lead from 0"),
        ({"encoded_exponent": WHOLE.encoded_exponent[:0]}, "0 bytes are outside"),
        ({"sign_mantissa": WHOLE.sign_mantissa[:0]}, "0 weights in"),
        ({"sign_mantissa": WHOLE.sign_mantissa[:-1]}, "does not lead from 0 to 29999"),
        ({"gaps": WHOLE.gaps[:-1]}, "gaps holds"),
        ({"split_positions": torch.tensor([-1])}, "split_positions does not ascend"),
        ({"split_positions": torch.tensor([30_001])}, "split_positions does not ascend"),
        ({"split_positions": torch.tensor([5, 4])}, "split_positions does not ascend"),
    ],
)
def test_arrays_that_contradict_each_other(changed: dict[str, Tensor], says: str) -> None:
    with pytest.raises(CheckpointError, match=says) as caught:
        prepare(replace(WHOLE, **changed), "model.layers.3")
    assert caught.value.what.startswith("model.layers.3: ")


def test_a_shifted_position_is_found_by_every_decoder() -> None:
    positions = WHOLE.output_positions.numpy().view(np.uint32)
    prepared = prepare(replace(WHOLE, output_positions=with_positions(put(1, int(positions[1]) - 1))))
    with pytest.raises(CheckpointError, match="codes of block 0"):
        decode(prepared)
    with pytest.raises(CheckpointError, match="number of codes"):
        decode_stepwise(prepared, torch.empty(30_000, dtype=torch.int16))


def test_a_wrong_gap_is_found() -> None:
    gaps = unpacked_gaps(WHOLE.gaps).to(torch.uint8).numpy()
    gaps[700] ^= 1
    prepared = prepare(replace(WHOLE, gaps=torch.from_numpy(packed_gaps(gaps))))
    decode(prepared)  # does not read it
    with pytest.raises(CheckpointError, match="gap of chunk 700"):
        check_gaps(prepared)
    with pytest.raises(CheckpointError, match="blocks 0 to"):
        decode_stepwise(prepared, torch.empty(30_000, dtype=torch.int16))


def test_what_is_whole_stays_whole() -> None:
    decode_guarded(WHOLE)
    check_gaps(prepare(WHOLE))


def test_a_gap_that_shifts_a_lane_without_changing_its_count_is_found() -> None:
    exponents = torch.arange(3000) % 3 + 100
    exponents[100:300] = 100  # chunk 5 and its neighbours are all zeros
    weight = (exponents << 7).to(torch.int16).view(torch.bfloat16)
    encoded = encode([weight])  # three symbols and the end: two bits each
    assert encoded is not None
    gaps = unpacked_gaps(encoded.gaps).to(torch.uint8).numpy()
    gaps[5] = 1
    prepared = prepare(replace(encoded, gaps=torch.from_numpy(packed_gaps(gaps))))
    with pytest.raises(CheckpointError, match="gap of chunk 5"):
        check_gaps(prepared)
    with pytest.raises(CheckpointError, match="disagree"):
        decode_stepwise(prepared, torch.empty(3000, dtype=torch.int16))


def proved(encoded: Encoded, weights: Tensor) -> bool:
    """Whether a group is what the encoder makes of these weights, as far as one can tell without encoding them."""
    prepared = prepare(encoded)
    decoded = decode(prepared)
    check_written(prepared, decoded)
    sizes = [len(weights) // 3, len(weights) - len(weights) // 3]
    same_parts = encoded.split_positions.tolist() == sizes[:1]
    return same_parts and torch.equal(decoded.view(torch.int16), weights.view(torch.int16))


SHAPES = {
    "gaussian": (torch.randn(9000, generator=torch.Generator().manual_seed(5)) * 0.02).bfloat16(),
    "one symbol": torch.full((70_000,), 1.5, dtype=torch.bfloat16),  # codes of one bit: two blocks and more
    "three": (torch.arange(500) % 3 + 100 << 7).to(torch.int16).view(torch.bfloat16),
    "few": torch.tensor([0.5, -3.0, 1e-9]).bfloat16(),
}
GROUPS = {name: encode([w[: len(w) // 3], w[len(w) // 3 :]]) for name, w in SHAPES.items()}


@pytest.mark.parametrize("name", SHAPES)
def test_what_the_encoder_writes_is_proved(name: str) -> None:
    group = GROUPS[name]
    assert group is not None
    assert proved(group, SHAPES[name])


@settings(deadline=None, max_examples=150)
@given(
    name=st.sampled_from(list(SHAPES)),
    field=st.sampled_from(FIELDS),
    at=st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 0.999999])),
    bit=st.integers(0, 7),
)
def test_no_bit_of_a_group_is_without_a_meaning(name: str, field: str, at: float, bit: int) -> None:
    """Gaps, tables and positions that decoding does not read, and what fills the last byte, included."""
    group = GROUPS[name]
    assert group is not None
    array = getattr(group, field).clone()
    flat = array.view(torch.uint8).view(-1)
    flat[int(at * len(flat))] ^= 1 << bit
    try:
        unnoticed = proved(replace(group, **{field: array}), SHAPES[name])
    except CheckpointError as error:
        assert error.hint  # noqa: PT017
        return
    assert not unnoticed
