"""Packed bit streams: round trips, the bit order, and byte equality with compressed-tensors."""

from __future__ import annotations

import numpy as np
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from hypothesis import given, settings
from hypothesis import strategies as st

from modicum.kernels.packing import pack_bits, pack_mask, packed_words, unpack_bits, unpack_mask

SIZES = {"rows": st.integers(0, 5), "k": st.integers(1, 150), "seed": st.integers(0, 2**31)}


def random_codes(rows: int, k: int, bits: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 1 << bits, (rows, k), generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=150)
@given(bits=st.integers(1, 8), **SIZES)
def test_codes_survive_the_round_trip(bits: int, rows: int, k: int, seed: int) -> None:
    codes = random_codes(rows, k, bits, seed)
    packed = pack_bits(codes, bits)
    assert packed.dtype == torch.int32
    assert packed.shape == (rows, packed_words(k, bits)) == (rows, -(-k * bits // 32))
    unpacked = unpack_bits(packed, bits, k)
    assert unpacked.dtype == torch.uint8
    assert torch.equal(unpacked.long(), codes)


@settings(deadline=None, max_examples=100)
@given(bits=st.integers(1, 8), **SIZES)
def test_bytes_equal_those_of_compressed_tensors(bits: int, rows: int, k: int, seed: int) -> None:
    codes = random_codes(rows + 1, k, bits, seed)
    signed = (codes - (1 << (bits - 1))).to(torch.int8)
    assert torch.equal(pack_bits(codes, bits), pack_to_int32(signed, bits))


@settings(deadline=None, max_examples=60)
@given(bits=st.integers(1, 8), **SIZES)
def test_code_i_occupies_the_bits_from_i_times_bits(bits: int, rows: int, k: int, seed: int) -> None:
    codes = random_codes(rows + 1, k, bits, seed)
    stream = np.unpackbits(pack_bits(codes, bits).numpy().view(np.uint8), axis=1, bitorder="little")
    assert not stream[:, k * bits :].any()
    values = stream[:, : k * bits].reshape(rows + 1, k, bits) @ (1 << np.arange(bits))
    assert np.array_equal(values, codes.numpy())


@settings(deadline=None, max_examples=60)
@given(**SIZES)
def test_masks_are_little_endian_bitmaps(rows: int, k: int, seed: int) -> None:
    mask = random_codes(rows, k, 1, seed).bool()
    packed = pack_mask(mask)
    assert packed.dtype == torch.uint8
    assert np.array_equal(packed.numpy(), np.packbits(mask.numpy(), axis=1, bitorder="little"))
    assert torch.equal(unpack_mask(packed, k), mask)


def test_a_known_word() -> None:
    assert pack_bits(torch.arange(8)[None], 4).item() == 0x76543210


@settings(deadline=None, max_examples=150)
@given(bits=st.integers(1, 8), **SIZES)
def test_strided_input_packs_like_contiguous_input(bits: int, rows: int, k: int, seed: int) -> None:
    codes = random_codes(k, rows + 1, bits, seed).to(torch.uint8)  # transposed below
    packed = pack_bits(codes.T, bits)
    assert torch.equal(packed, pack_bits(codes.T.clone(memory_format=torch.contiguous_format), bits))
    turned = packed.T.clone(memory_format=torch.contiguous_format).T
    every_other = torch.stack((packed, packed), dim=-1)[..., 0]
    for strided in (turned, every_other):
        assert torch.equal(unpack_bits(strided, bits, k), codes.T)


@settings(deadline=None, max_examples=60)
@given(**SIZES)
def test_strided_masks_pack_like_contiguous_masks(rows: int, k: int, seed: int) -> None:
    mask = random_codes(k, rows + 1, 1, seed).bool()
    packed = pack_mask(mask.T)
    assert torch.equal(packed, pack_mask(mask.T.clone(memory_format=torch.contiguous_format)))
    assert torch.equal(unpack_mask(packed.T.clone(memory_format=torch.contiguous_format).T, k), mask.T)
