"""Integer grids: zero is on them, errors are bounded, Gaussian signal-to-noise ratios are the known ones."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.utils import calculate_qparams
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modicum.errors import InvalidSetting
from modicum.kernels.grids import IntegerScheme, dequantize, expand_groups, fit_grid, group_index, quantize

SCHEMES = st.builds(IntegerScheme, st.integers(2, 8), st.sampled_from([-1, 1, 7, 16, 32, 500]), st.booleans())
SCALE_DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def gaussian(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def round_trip(
    weight: Tensor, scheme: IntegerScheme, scale_dtype: torch.dtype = torch.float32, search: bool = False
) -> Tensor:
    scale, zero_point = fit_grid(weight, scheme, scale_dtype, search=search)
    return dequantize(quantize(weight, scale, zero_point, scheme), scale, zero_point, scheme, torch.float32)


def signal_to_noise(weight: Tensor, restored: Tensor) -> float:
    """In decibels."""
    return float(10 * torch.log10(weight.square().sum() / (weight - restored).square().sum()))


@settings(deadline=None, max_examples=80)
@given(scheme=SCHEMES, columns=st.integers(1, 70), scale_dtype=SCALE_DTYPES, seed=st.integers(0, 99))
def test_zero_and_every_grid_point_are_fixed_points(
    scheme: IntegerScheme, columns: int, scale_dtype: torch.dtype, seed: int
) -> None:
    weight = gaussian(3, columns, seed) + 0.7 * (seed % 3 - 1)
    weight[:, ::3] = 0
    scale, zero_point = fit_grid(weight, scheme, scale_dtype)
    codes = quantize(weight, scale, zero_point, scheme)
    assert codes.dtype == torch.int8
    assert scheme.lowest <= codes.min() <= codes.max() <= scheme.highest
    assert scale.shape == (3, scheme.groups(columns))
    assert scale.dtype == scale_dtype
    restored = dequantize(codes, scale, zero_point, scheme, torch.float32)
    assert not restored[:, ::3].any()
    assert torch.equal(quantize(restored, scale, zero_point, scheme), codes)


@settings(deadline=None, max_examples=60)
@given(scheme=SCHEMES, columns=st.integers(1, 70), seed=st.integers(0, 99))
def test_the_error_stays_within_one_step(scheme: IntegerScheme, columns: int, seed: int) -> None:
    weight = gaussian(3, columns, seed)
    scale, _ = fit_grid(weight, scheme, torch.float32)
    # half a step, plus the half step that a symmetric maximum or a rounded zero point may be clipped by
    bound = expand_groups(scale, columns, scheme) * 1.001
    assert bool(((round_trip(weight, scheme) - weight).abs() <= bound).all())


@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric", "decibels"),
    [
        (8, -1, True, 41.2),
        (4, 32, True, 20.4),
        (4, 128, True, 19.1),
        (4, 128, False, 19.9),
        (3, 128, False, 13.3),
        (2, 128, False, 6.0),
        (2, 32, False, 7.8),
    ],
)
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
def test_gaussian_signal_to_noise(
    bits: int, group_size: int, symmetric: bool, decibels: float, scale_dtype: torch.dtype
) -> None:
    weight = gaussian(128, 4096)
    restored = round_trip(weight, IntegerScheme(bits, group_size, symmetric), scale_dtype)
    assert signal_to_noise(weight, restored) == pytest.approx(decibels, abs=0.15)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_parameters_equal_those_of_compressed_tensors(bits: int, symmetric: bool) -> None:
    weight = gaussian(64, 256) + 0.3
    scale, zero_point = fit_grid(weight, IntegerScheme(bits, -1, symmetric), torch.float32)
    args = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="channel")
    theirs, their_zero = calculate_qparams(weight.amin(1), weight.amax(1), args)
    torch.testing.assert_close(scale[:, 0], theirs, rtol=1e-6, atol=0)
    if zero_point is not None:
        assert torch.equal(zero_point[:, 0], their_zero.to(torch.int32))


def test_quantisation_uses_the_rounded_scale() -> None:
    scheme = IntegerScheme(4, 32)
    weight = gaussian(16, 64)
    exact, _ = fit_grid(weight, scheme, torch.float32)
    rounded, _ = fit_grid(weight, scheme, torch.bfloat16)
    assert torch.equal(rounded, exact.to(torch.bfloat16))
    codes = quantize(weight, rounded, None, scheme)
    nearest = (weight / expand_groups(rounded.float(), 64, scheme)).round().clamp(-8, 7)
    assert torch.equal(codes.float(), nearest)


def test_an_all_zero_group_has_scale_one() -> None:
    for symmetric in (True, False):
        scheme = IntegerScheme(4, 2, symmetric)
        scale, zero_point = fit_grid(torch.tensor([[0.0, 0.0, 1.0, 2.0]]), scheme, torch.float32)
        assert scale[0, 0] == 1
        restored = round_trip(torch.zeros(1, 4), scheme)
        assert not restored.any()
        assert (zero_point is None) == symmetric


@pytest.mark.parametrize("amplitude", [1e-9, 1e7])
def test_scales_beyond_the_range_of_half_precision_stay_finite_and_positive(amplitude: float) -> None:
    weight = amplitude * gaussian(4, 32)
    scale, _ = fit_grid(weight, IntegerScheme(4), torch.float16)
    assert bool(torch.isfinite(scale).all())
    assert bool((scale > 0).all())
    assert bool(torch.isfinite(round_trip(weight, IntegerScheme(4), torch.float16)).all())


def test_one_sided_weights_keep_their_sign_and_zero() -> None:
    weight = gaussian(8, 64).abs() + 1
    for sign in (1, -1):
        restored = round_trip(sign * weight, IntegerScheme(3, 32, False))
        assert bool((sign * restored >= 0).all())


def test_clip_search_lowers_the_error_of_heavy_tails() -> None:
    weight = gaussian(16, 512) ** 3
    for symmetric in (True, False):
        scheme = IntegerScheme(3, 128, symmetric)
        plain = (round_trip(weight, scheme) - weight).abs().pow(2.4).sum()
        searched = (round_trip(weight, scheme, search=True) - weight).abs().pow(2.4).sum()
        assert searched < 0.9 * plain


def test_a_short_last_group_has_its_own_scale() -> None:
    scheme = IntegerScheme(8, 4)
    weight = torch.tensor([[1.0, 1, 1, 1, 100, 100]])
    scale, _ = fit_grid(weight, scheme, torch.float32)
    torch.testing.assert_close(scale, torch.tensor([[1.0, 100.0]]) / 127.5)
    assert group_index(6, scheme).tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dequantising_in_the_stored_dtype_rounds_once(dtype: torch.dtype) -> None:
    for scheme in (IntegerScheme(8, 32, False), IntegerScheme(4, 32)):
        weight = gaussian(32, 64).to(dtype)
        scale, zero_point = fit_grid(weight, scheme, dtype)
        codes = quantize(weight, scale, zero_point, scheme)
        exact = dequantize(codes, scale.double(), zero_point, scheme, torch.float32)
        assert torch.equal(dequantize(codes, scale, zero_point, scheme, dtype), exact.to(dtype))


@pytest.mark.parametrize(("bits", "group_size"), [(1, 128), (9, 128), (4, 0), (4, -2)])
def test_impossible_schemes_are_refused(bits: int, group_size: int) -> None:
    with pytest.raises(InvalidSetting):
        IntegerScheme(bits, group_size)
