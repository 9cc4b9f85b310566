"""Image metrics: limits, orderings, and values computed in another way."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modicum.errors import InvalidSetting, MissingExtra, UnusableData
from modicum.evaluate.images import frechet, lpips, mean_squared_error, moments, psnr, ssim


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(count: int = 3, height: int = 20, width: int = 24, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=_generator(seed))


def test_psnr_of_known_errors() -> None:
    black = torch.zeros(2, 3, 4, 4)
    assert psnr(black, black) == math.inf
    assert psnr(black + 0.1, black) == pytest.approx(20)
    assert psnr(black + 1, black) == pytest.approx(0)
    half = black.clone()
    half[0] = 0.1  # one of two images is wrong: half the error, 3 dB more
    assert psnr(half, black) == pytest.approx(20 + 10 * math.log10(2))
    assert mean_squared_error(half, black).tolist() == pytest.approx([0.01, 0])


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(11, 30), width=st.integers(11, 30), noise=st.floats(0, 1), seed=st.integers(0, 1000)
)
def test_ssim_as_scipy_computes_it(height: int, width: int, noise: float, seed: int) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    images = _images(1, height, width, seed)
    reference = ((1 - noise) * images + noise * _images(1, height, width, seed + 1)).clamp(0, 1)

    def blurred(plane: np.ndarray) -> np.ndarray:  # the published window: 11x11, sigma 1.5, borders cut off
        return ndimage.gaussian_filter(plane, 1.5, truncate=3.5)[5:-5, 5:-5]

    indices = []
    for x, y in zip(images[0].double().numpy(), reference[0].double().numpy(), strict=True):
        mx, my = blurred(x), blurred(y)
        vx, vy, cov = blurred(x * x) - mx * mx, blurred(y * y) - my * my, blurred(x * y) - mx * my
        index = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
        indices.append(index.mean())
    assert ssim(images, reference).item() == pytest.approx(np.mean(indices), abs=1e-9)


def test_ssim_is_one_for_itself_symmetric_and_falls_with_noise() -> None:
    images, other = _images(), _images(seed=9)
    assert ssim(images, images).tolist() == pytest.approx([1, 1, 1])
    torch.testing.assert_close(ssim(images, other), ssim(other, images))
    ladder = [ssim(images + level * (other - images), images).mean() for level in (0.1, 0.3, 0.6, 1.0)]
    assert ladder == sorted(ladder, reverse=True)
    assert ssim(1 - images, images).max() < 0  # structure turned upside down


def test_what_cannot_be_compared() -> None:
    for metric in (mean_squared_error, psnr, ssim):
        with pytest.raises(InvalidSetting, match="cannot be compared"):
            metric(_images(2), _images(3))
    with pytest.raises(InvalidSetting, match="11x11"):
        ssim(_images(height=10), _images(height=10))
    with pytest.raises(UnusableData, match="no covariance"):
        moments(torch.zeros(1, 4))


def test_moments() -> None:
    features = torch.randn(50, 4, generator=_generator())
    mean, covariance = moments(features)
    assert mean.dtype == covariance.dtype == torch.float64
    np.testing.assert_allclose(covariance, np.cov(features.double().numpy().T))


def test_frechet_distance_of_normals() -> None:
    one, four = torch.eye(3).double(), 4 * torch.eye(3).double()
    zero, shift = torch.zeros(3).double(), torch.tensor([0.0, 3.0, 4.0]).double()
    assert frechet(zero, one, zero, one) == pytest.approx(0, abs=1e-9)
    assert frechet(zero, one, shift, one) == pytest.approx(25)
    assert frechet(zero, one, zero, four) == pytest.approx(3 * (2 - 1) ** 2)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=_generator()).double()).Q
    mixed = turn @ torch.diag(torch.tensor([1.0, 2.0, 0.0]).double()) @ turn.T  # singular
    assert frechet(shift, mixed, shift, mixed) == pytest.approx(0, abs=1e-6)
    assert frechet(zero, mixed, zero, one) == pytest.approx(frechet(zero, one, zero, mixed))


def test_lpips_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(MissingExtra, match="lpips") as caught:
        lpips(_images(), _images())
    assert "modicum[lpips]" in caught.value.hint


def test_lpips_hands_over_images_in_the_unit_range(monkeypatch: pytest.MonkeyPatch) -> None:
    class Network(torch.nn.Module):
        def forward(self, first: Tensor, second: Tensor, normalize: bool) -> Tensor:
            assert normalize
            return (first - second).abs().mean(dim=(1, 2, 3), keepdim=True)

    fake = SimpleNamespace(LPIPS=lambda net, verbose: Network())
    monkeypatch.setitem(sys.modules, "lpips", fake)
    found = lpips(_images(), _images(seed=1))
    torch.testing.assert_close(found, (_images() - _images(seed=1)).abs().mean(dim=(1, 2, 3)).double())


def test_lpips_without_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(net: str, verbose: bool) -> None:
        raise OSError("no route")

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=offline))
    with pytest.raises(UnusableData, match="no route"):
        lpips(_images(), _images())
