"""What was encoded comes back bit for bit, and the arrays have the structure that others rely on."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modicum.kernels.huffman.code import code_of_counts, entropy, payload_bits
from modicum.kernels.huffman.compiled import compiled
from modicum.kernels.huffman.decoder import check_gaps, decode
from modicum.kernels.huffman.encoder import encode, symbol_counts, why_raw
from modicum.kernels.huffman.layout import BLOCK_BITS, DTYPES, Encoded, packed_gaps, prepare, unpacked_gaps
from modicum.kernels.huffman.stepwise import decode_stepwise


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)


def bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def encoded(*tensors: Tensor) -> Encoded:
    group = encode(tensors)
    assert group is not None
    return group


def assert_exact(*tensors: Tensor) -> None:
    """All decoders give the group back."""
    prepared = prepare(encoded(*tensors))
    whole = torch.cat([bits(tensor) for tensor in tensors])
    assert torch.equal(bits(decode(prepared)), whole)
    assert torch.equal(bits(decode(prepared, threads=3)), whole)
    check_gaps(prepared)
    if prepared.encoded.low is None:
        words = torch.empty(prepared.encoded.sign_mantissa.numel(), dtype=torch.int16)
        decode_stepwise(prepared, words)
        assert torch.equal(bits(words), whole)


@settings(deadline=None, max_examples=80)
@given(
    patterns=st.lists(st.integers(0, 2**16 - 1), max_size=80),
    repeats=st.integers(1, 30),
    moderate=st.sampled_from([0xFFFF, 0xBFFF]),  # without the exponent's upper bit, all can be represented
)
def test_any_bits_come_back_or_are_left_raw(patterns: list[int], repeats: int, moderate: int) -> None:
    patterns = [pattern & moderate for pattern in patterns]
    words = torch.tensor(patterns * repeats, dtype=torch.int32).to(torch.int16)
    unrepresentable = any((pattern >> 7) & 0xFF >= 240 for pattern in patterns)
    for dtype in (torch.bfloat16, torch.float16):
        weight = words.view(dtype)
        if not patterns or unrepresentable:
            assert encode([weight]) is None
            assert why_raw(symbol_counts([weight]))
        else:
            assert_exact(weight)


@settings(deadline=None, max_examples=60)
@given(patterns=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=80))
def test_any_float32_comes_back_or_is_left_raw(patterns: list[int]) -> None:
    weight = torch.tensor(patterns, dtype=torch.int64).to(torch.int32).view(torch.float32)
    if any((pattern >> 23) & 0xFF >= 240 for pattern in patterns):
        assert encode([weight]) is None
    else:
        assert_exact(weight)


@settings(deadline=None, max_examples=40)
@given(
    shapes=st.lists(st.lists(st.integers(0, 40), max_size=3), min_size=1, max_size=7),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_groups_of_any_shapes(shapes: list[list[int]], dtype: torch.dtype, seed: int) -> None:
    tensors = [gaussian(*shape, seed=seed + i, dtype=dtype) for i, shape in enumerate(shapes)]
    if not sum(tensor.numel() for tensor in tensors):
        assert encode(tensors) is None
        return
    assert_exact(*tensors)
    group = encoded(*tensors)
    parts = torch.tensor_split(decode(prepare(group)), group.split_positions)
    assert len(parts) == len(tensors)
    for part, tensor in zip(parts, tensors, strict=True):
        assert torch.equal(bits(part), bits(tensor))


@pytest.mark.parametrize("n", [1, 2, 511, 4096 * 64 + 1])
def test_sizes(n: int) -> None:
    assert_exact(gaussian(n))


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-40, -3.5, 2.0**-126])
@pytest.mark.parametrize("dtype", DTYPES)
def test_constants_take_one_bit(value: float, dtype: torch.dtype) -> None:
    weight = torch.full((40_000,), value, dtype=dtype)
    assert_exact(weight)
    assert encoded(weight).encoded_exponent.numel() == 5000


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -(2.0**113)])
def test_what_the_format_cannot_hold_is_left_raw(value: float) -> None:
    weight = gaussian(100)
    weight[50] = value
    assert encode([weight]) is None
    assert "beyond the format's range" in why_raw(symbol_counts([weight]))
    weight[50] = 2.0**112
    assert_exact(weight)


def test_a_group_that_is_too_large_is_left_raw() -> None:
    counts = np.zeros(256, np.int64)
    counts[120] = 2**31 - 1
    assert not why_raw(counts)
    counts[121] = 1
    assert "more than" in why_raw(counts)


def test_other_types_have_no_code() -> None:
    with pytest.raises(TypeError, match="int8"):
        encode([torch.zeros(3, dtype=torch.int8)])


def test_a_transposed_weight_is_taken_row_by_row() -> None:
    weight = gaussian(30, 50).T
    assert torch.equal(decode(prepare(encoded(weight))).view(50, 30), weight)


def steep(n: int) -> Tensor:
    """40 exponents with Fibonacci-like shares, the longest code beyond every window."""
    shares = torch.tensor([1.618**-k for k in range(40)])
    exponents = torch.multinomial(shares, n, replacement=True, generator=torch.Generator().manual_seed(1))
    exponents[:400] = torch.arange(400) % 40
    return (exponents + 90 << 7).to(torch.int16).view(torch.bfloat16)


def test_long_codes() -> None:
    weight = steep(60_000)
    assert encoded(weight).luts[-1].max() > 11
    assert_exact(weight)


def test_structure() -> None:
    n = 100_001
    group = encoded(gaussian(n - 1), gaussian(1))
    prepared = prepare(group)
    code, exponents = (
        prepared.code,
        ((torch.cat([gaussian(n - 1), gaussian(1)]).view(torch.int16) >> 7) & 0xFF).numpy(),
    )
    starts = np.cumsum(code.lengths[exponents].astype(np.int64)) - code.lengths[exponents]
    blocks = -(-group.encoded_exponent.numel() // 4096)
    assert prepared.positions.tolist() == [*np.searchsorted(starts, BLOCK_BITS * np.arange(blocks)), n]
    chunks, first = np.unique(starts // 64, return_index=True)
    gaps = unpacked_gaps(group.gaps).numpy()
    assert group.gaps.numel() == 320 * blocks
    assert np.array_equal(gaps[: len(chunks)], starts[first] % 64)
    assert not gaps[len(chunks) + 1 :].any()
    assert group.split_positions.tolist() == [n - 1]
    assert group.sign_mantissa.numel() == n


def test_gaps_are_packed_most_significant_bit_first() -> None:
    gaps = np.random.default_rng(0).integers(0, 32, 1024).astype(np.uint8)
    packed = packed_gaps(gaps)
    stream = "".join(f"{gap:05b}" for gap in gaps)
    assert packed.tolist() == [int(stream[i : i + 8], 2) for i in range(0, len(stream), 8)]
    assert unpacked_gaps(torch.from_numpy(packed)).tolist() == gaps.tolist()


def test_a_block_decodes_alone() -> None:
    weight = gaussian(50_000)
    prepared = prepare(encoded(weight))
    assert prepared.blocks > 3
    tables, whole = prepared.tables, weight.view(torch.int16).numpy().view(np.uint16)
    for block in range(prepared.blocks):
        out = np.full(len(whole), 0xABCD, np.uint16)
        wrong = compiled().decode_blocks(
            block,
            block + 1,
            prepared.encoded.encoded_exponent.numpy(),
            prepared.begins,
            prepared.positions,
            tables.windows,
            tables.symbols,
            tables.starts,
            tables.lengths,
            prepared.encoded.sign_mantissa.numpy(),
            out,
        )
        here = slice(*prepared.positions[block : block + 2])
        assert wrong == -1
        assert np.array_equal(out[here], whole[here])
        assert (np.delete(out, np.r_[here]) == 0xABCD).all()


@pytest.mark.parametrize("over", [1, 8, 9])
def test_the_last_code_may_reach_into_a_block_of_its_own(over: int) -> None:
    rare = [k for k in range(14) for _ in range(2 ** max(0, 10 - k))]
    counts = np.bincount(np.array([*rare, *[20] * 25_000, 13]), minlength=256).astype(np.int64)
    lengths = code_of_counts(counts).lengths.astype(int)
    filler = BLOCK_BITS + over - int(lengths[rare].sum()) - int(lengths[13])
    assert lengths[20] == 1
    assert lengths[13] > over
    exponents = np.array([*rare, *[20] * filler, 13]) + 100
    weight = torch.from_numpy((exponents << 7).astype(np.int16)).view(torch.bfloat16)
    assert prepare(encoded(weight)).positions.tolist() == [0, len(exponents), len(exponents)]
    assert_exact(weight)


def test_gaussian_weights_take_10_8_bits() -> None:
    weight = gaussian(1 << 20)
    counts = symbol_counts([weight])
    group = encoded(weight)
    assert 10.7 <= 8 * group.nbytes / weight.numel() <= 10.85
    assert (
        entropy(counts)
        <= payload_bits(code_of_counts(counts), counts) / weight.numel()
        <= entropy(counts) + 0.06
    )
    assert group.nbytes == sum(tensor.nbytes for tensor in group.tensors().values())


def test_decoding_writes_into_the_given_tensor() -> None:
    weight = gaussian(1000)
    around = torch.full((1200,), 7.0, dtype=torch.bfloat16)
    out = decode(prepare(encoded(weight)), out=around[100:1100])
    assert out.data_ptr() == around[100:].data_ptr()
    assert torch.equal(around[100:1100], weight)
    assert (around[:100] == 7).all()
    assert (around[1100:] == 7).all()


@pytest.mark.parametrize(
    "out",
    [
        torch.empty(999, dtype=torch.bfloat16),
        torch.empty(10, 100, dtype=torch.bfloat16),
        torch.empty(1000),
        torch.empty(2000, dtype=torch.bfloat16)[::2],
    ],
)
def test_another_tensor_is_not_written_to(out: Tensor) -> None:
    with pytest.raises(ValueError, match="1000 weights"):
        decode(prepare(encoded(gaussian(1000))), out=out)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_encoding_takes_less_memory_than_the_weights(dtype: torch.dtype) -> None:
    weight = gaussian(1 << 22, dtype=dtype)
    encoded(weight[:10])  # compiles
    tracemalloc.start()
    encoded(weight)
    peak = tracemalloc.get_traced_memory()[
        1
    ]  # of NumPy: what grows into the result, too, but for the raw bytes
    tracemalloc.stop()
    assert peak < 0.6 * 2 * weight.numel()
