"""How far images are from the images they should be.

Three questions, three kinds of number. Same pixels? PSNR and SSIM (Wang et al., IEEE TIP 2004) compare image by
image, LPIPS (Zhang et al., CVPR 2018, arXiv 1801.03924) does so in the features of a network that sees as people
do. Same crowd? The Frechet distance (Heusel et al., NeurIPS 2017, arXiv 1706.08500) compares two sets of images as
normal distributions in a feature space,

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

Images are float `[B, C, H, W]` in [0, 1] throughout. Which feature space a Frechet distance lives in is the caller's
choice: numbers of two spaces, or of two numbers of images, are not comparable.
"""

from __future__ import annotations

import math
from importlib import import_module

import torch
from torch import Tensor
from torch.nn import functional as F

from modicum.errors import InvalidSetting, MissingExtra, UnusableData

WINDOW, SIGMA = 11, 1.5  # of SSIM, in pixels
STABILIZERS = (0.01**2, 0.03**2)  # (K L)^2 with L = 1


def mean_squared_error(images: Tensor, reference: Tensor) -> Tensor:
    """Mean squared difference of each image, float64 `[B]`.

    Args:
        images: float `[B, C, H, W]`.
        reference: what they should be, of the same shape.

    Raises:
        InvalidSetting: the shapes differ.
    """
    _check_shapes(images, reference)
    return (images.double() - reference.double()).square().flatten(1).mean(1)


def psnr(images: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio of a set of images in decibel; infinite if all of them are identical.

    It is that of the mean squared error over the whole set. The mean of one value per image, which is also in use,
    is never lower, and infinite as soon as a single image is identical.

    Args:
        images: float `[B, C, H, W]` in [0, 1].
        reference: what they should be, of the same shape.

    Raises:
        InvalidSetting: the shapes differ.
    """
    error = mean_squared_error(images, reference).mean().item()
    return -10 * math.log10(error) if error else math.inf


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of each image, float64 `[B]`; 1 is identical.

    Means, variances and covariance are taken under a Gaussian window of 11x11 pixels that lies inside the image, per
    channel; the index is averaged over positions and channels.

    Args:
        images: float `[B, C, H, W]` in [0, 1].
        reference: what they should be, of the same shape.

    Raises:
        InvalidSetting: the shapes differ, or an image is smaller than the window.
    """
    _check_shapes(images, reference)
    if min(images.shape[-2:]) < WINDOW:
        raise InvalidSetting(
            f"SSIM needs images of {WINDOW}x{WINDOW} pixels or more; these have {tuple(images.shape[-2:])}.",
            "Leave SSIM out for them.",
        )
    x, y = images.double(), reference.double()
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x = _blurred(x * x) - mean_x * mean_x
    variance_y = _blurred(y * y) - mean_y * mean_y
    covariance = _blurred(x * y) - mean_x * mean_y
    c1, c2 = STABILIZERS
    index = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    index = index / ((mean_x.square() + mean_y.square() + c1) * (variance_x + variance_y + c2))
    return index.flatten(1).mean(1)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `[d]` and covariance `[d, d]` of features `[n, d]`, in float64.

    Raises:
        UnusableData: fewer than two rows, which have no covariance.
    """
    if len(features) < 2:
        raise UnusableData(f"{len(features)} image has no covariance.", "Compare two images or more.")
    features = features.double()
    return features.mean(0), features.T.cov()


def frechet(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor) -> float:
    """Frechet distance between two normal distributions; float64 `[d]` and `[d, d]` twice.

    The trace of the square root of a product of covariances is the sum of the roots of its eigenvalues, which
    are real and not negative.
    """
    roots = torch.linalg.eigvals(covariance1 @ covariance2).real.clamp_min(0).sqrt().sum()
    spread = covariance1.trace() + covariance2.trace() - 2 * roots
    return max((mean1 - mean2).square().sum().item() + spread.item(), 0.0)


@torch.no_grad()
def lpips(images: Tensor, reference: Tensor) -> Tensor:
    """Perceptual distance of each image (AlexNet version), float64 `[B]`; 0 is identical.

    Args:
        images: float `[B, 3, H, W]` in [0, 1].
        reference: what they should be, of the same shape.

    Raises:
        InvalidSetting: the shapes differ.
        MissingExtra: the package `lpips` is not installed.
        UnusableData: its network's weights are neither cached nor to be fetched.
    """
    _check_shapes(images, reference)
    try:
        package = import_module("lpips")
    except ImportError as error:
        raise MissingExtra.of("lpips", "lpips", "The perceptual distance") from error
    try:
        network = package.LPIPS(net="alex", verbose=False).eval().to(images.device)
    except OSError as error:
        raise UnusableData(
            f"The AlexNet weights that LPIPS compares with cannot be fetched: {error}",
            "Connect once to the network, or leave LPIPS out.",
        ) from error
    return network(images.float(), reference.float(), normalize=True).flatten().double()


def _blurred(planes: Tensor) -> Tensor:
    """Gaussian mean at every position where the window lies inside, `[B, C, H - 10, W - 10]`."""
    offset = torch.arange(WINDOW, dtype=planes.dtype, device=planes.device) - WINDOW // 2
    weights = (-offset.square() / (2 * SIGMA**2)).exp()
    weights = (weights / weights.sum()).view(1, 1, WINDOW, 1)
    single = planes.flatten(0, 1)[:, None]  # [B * C, 1, H, W]
    blurred = F.conv2d(F.conv2d(single, weights), weights.transpose(2, 3))
    return blurred.view(*planes.shape[:2], *blurred.shape[2:])


def _check_shapes(images: Tensor, reference: Tensor) -> None:
    if images.shape != reference.shape or images.dim() != 4:
        raise InvalidSetting(
            f"Images of shape {tuple(images.shape)} cannot be compared with {tuple(reference.shape)}.",
            "Give two tensors [images, channels, height, width] of the same shape.",
        )
