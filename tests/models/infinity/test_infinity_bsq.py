from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from modicum.models.infinity import Infinity, Resolution, bsq
from modicum.models.infinity.positions import coordinates, rotary_table, rotation
from modicum.models.next_scale import Schedule

CPU = torch.device("cpu")
SIZES = st.integers(1, 4)


@given(SIZES, SIZES, SIZES, st.integers(1, 9), st.integers(0, 2**31))
def test_bits_to_codes_and_back(images: int, height: int, width: int, dim: int, seed: int) -> None:
    bits = torch.rand(images, height, width, dim, generator=torch.Generator().manual_seed(seed)) < 0.5
    codes = bsq.to_codes(bits)
    assert codes.shape == (images, dim, height, width)
    assert torch.equal(bsq.to_bits(codes), bits)
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(images, height, width))


@given(SIZES, SIZES, SIZES, SIZES, st.sampled_from([1, 2, 3]))
def test_patches_of_bits_and_of_features_agree(images: int, h: int, w: int, dim: int, patch: int) -> None:
    tokens = torch.rand(images, h * w, dim * patch**2, generator=torch.Generator().manual_seed(0)) < 0.5
    bits = bsq.unpatchify(tokens, (h, w), patch)
    assert bits.shape == (images, patch * h, patch * w, dim)
    assert torch.equal(bsq.patchify(bits.permute(0, 3, 1, 2).float(), patch).bool(), tokens)


def test_a_token_stands_for_its_own_place() -> None:
    tokens = torch.zeros(1, 6, 8, dtype=torch.bool)
    tokens[0, 4] = True  # row 1, column 1 of 2 x 3
    bits = bsq.unpatchify(tokens, (2, 3), 2)
    assert bits[0, 2:4, 2:4].all()
    assert bits.sum() == 8


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6))
def test_decoding_repeats_the_sum_of_the_encoder(seed: int, dim: int) -> None:
    schedule = Schedule.of([(1, 1), (2, 3), (4, 3), (4, 6)])
    features = torch.randn(2, dim, 4, 6, generator=torch.Generator().manual_seed(seed))
    bits, total = bsq.quantize(features, schedule.sizes)
    assert [tuple(chosen.shape[1:3]) for chosen in bits] == list(schedule.sizes)
    assert torch.equal(bsq.running(bits, (4, 6))[-1], total)
    assert torch.equal(bits[0][:, 0, 0], features.mean((2, 3)) > 0)  # the first map sees the mean


def test_more_maps_come_nearer() -> None:
    features = F.normalize(torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    bits, _ = bsq.quantize(features, [(side, side) for side in (1, 2, 4, 8, 8, 8)])
    rest = [(features - total).norm() for total in bsq.running(bits, (8, 8))]
    assert rest[-1] < rest[3] < rest[0]


def test_what_the_transformer_reads() -> None:
    bits = [torch.rand(2, side, side, 3) < 0.5 for side in (2, 4, 8)]
    read = bsq.teacher_input(bits, [(2, 2), (4, 4), (8, 8)], patch=2)
    assert read.shape == (2, 4 + 16, 12)
    first = F.interpolate(
        F.interpolate(bsq.to_codes(bits[0]), (8, 8), mode="bilinear"), (4, 4), mode="bilinear"
    )
    torch.testing.assert_close(read[:, :4], bsq.patchify(first, 2))
    assert bsq.teacher_input(bits[:1], [(2, 2)], patch=2).shape == (2, 0, 12)


def test_trilinear_over_one_moment_is_bilinear() -> None:
    features = torch.randn(2, 3, 5, 4)
    along_time = F.interpolate(features[:, :, None], (1, 9, 7), mode="trilinear")[:, :, 0]
    torch.testing.assert_close(bsq.resize(features, (9, 7)), along_time)


def test_places_of_the_published_square() -> None:
    resolution = Resolution.of(1.0)
    places, offsets = coordinates(resolution), resolution.schedule.offsets
    assert places[0].tolist() == [0, 0]
    last = places[offsets[12] :].view(64, 64, 2)
    assert torch.equal(last[:, 0, 0], torch.arange(64))
    assert torch.equal(last[0, :, 1], torch.arange(64))
    fifth = places[offsets[5] : offsets[6]].view(12, 12, 2)[:, 0, 0]  # multiples of 64 / 12
    assert fifth.tolist() == [0, 5, 11, 16, 21, 27, 32, 37, 43, 48, 53, 59]
    fourth = places[offsets[9] : offsets[10]].view(32, 32, 2)[0, :, 1]
    assert torch.equal(fourth, 2 * torch.arange(32))


def test_halves_are_rounded_to_even() -> None:
    places = coordinates(Resolution(Schedule.of([(4, 4)]), (10, 10)))  # 0, 2.5, 5, 7.5
    assert places[::4, 0].tolist() == [0, 2, 5, 8]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([4, 8, 12, 128]), st.integers(0, 40), st.integers(0, 40), st.integers(0, 2**31))
def test_products_depend_on_the_difference_of_places(head_dim: int, down: int, right: int, seed: int) -> None:
    grid = Resolution(Schedule.of([(50, 50)]), (50, 50))
    table = rotary_table(grid, head_dim, CPU).unflatten(1, (50, 50))  # [2, row, column, d/2]
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 1, 1, 1, head_dim, generator=generator)

    def product(first: tuple[int, int], second: tuple[int, int]) -> torch.Tensor:
        turned = (rotation(table[:, r, c][:, None])(x) for x, (r, c) in ((q, first), (k, second)))
        return torch.linalg.vecdot(*turned)

    torch.testing.assert_close(
        product((1, 2), (4, 3)), product((1 + down, 2 + right), (4 + down, 3 + right)), atol=2e-4, rtol=1e-4
    )
    torch.testing.assert_close(product((7, 7), (7, 7)), torch.linalg.vecdot(q, k), atol=1e-4, rtol=1e-4)


def test_rows_turn_the_first_half_of_the_pairs_and_columns_the_second() -> None:
    table = rotary_table(Resolution(Schedule.of([(2, 2)]), (2, 2)), 8, CPU)
    x = torch.ones(1, 1, 4, 8)
    turned = rotation(table)(x)[0, 0]  # tokens (0,0) (0,1) (1,0) (1,1)
    assert torch.equal(turned[0], x[0, 0, 0])
    assert torch.equal(turned[1, :4], x[0, 0, 0, :4])
    assert torch.equal(turned[2, 4:], x[0, 0, 0, 4:])
    assert not torch.allclose(turned[1, 4:], x[0, 0, 0, 4:])
    assert torch.equal(turned[3], torch.cat((turned[2, :4], turned[1, 4:])))
    torch.testing.assert_close(turned.norm(dim=-1), x[0, 0].norm(dim=-1))


@pytest.mark.parametrize("maps", [7, 10])
def test_smaller_images_use_the_places_of_the_large_one(model: Infinity, maps: int) -> None:
    whole = rotary_table(Resolution.of(0.75), model.config.head_dim, CPU)
    short = Resolution.of(0.75).prefix(maps)
    assert torch.equal(rotary_table(short, model.config.head_dim, CPU), whole[:, : short.schedule.total])
