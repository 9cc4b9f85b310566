"""Handwritten digits for the nano image model, and the judge of what it draws.

The 1797 digits that travel with scikit-learn (8x8 pixels, 17 grey levels; UCI "optical recognition of
handwritten digits") are enlarged to 32x32 with bicubic interpolation. Every fifth is held out.

A generated digit is good if it looks like its class and if the crowd of them looks like the crowd of real ones.
The judge, a small convolutional classifier that only ever saw real digits, measures both: accuracy of its
verdict, and the Frechet distance between its features of generated and of held-out real digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.errors import MissingExtra
from modicum.evaluate.images import frechet, moments

SIDE = 32  # pixels
CLASSES = 10
HELD_OUT_EVERY = 5


@dataclass(frozen=True)
class Digits:
    """Images and their labels.

    Attributes:
        images: `[n, 3, 32, 32]` in [0, 1], white on black, three equal channels.
        labels: int64 `[n]`.
    """

    images: Tensor
    labels: Tensor


def load_digits(split: Literal["train", "heldout"]) -> Digits:
    """The digits of a split: 1437 for training, 360 held out.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingExtra.of("scikit-learn", "train", "Training on handwritten digits") from error
    bunch = datasets.load_digits()
    small = torch.from_numpy(bunch.images).float()[:, None] / 16  # [n, 1, 8, 8]
    large = F.interpolate(small, (SIDE, SIDE), mode="bicubic").clamp(0, 1)
    held_out = torch.arange(len(large)) % HELD_OUT_EVERY == 0
    chosen = held_out if split == "heldout" else ~held_out
    return Digits(large[chosen].repeat(1, 3, 1, 1), torch.from_numpy(bunch.target)[chosen].long())


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, shrink and shift each image a little, `[n, channels, side, side]`: up to 9 degrees, 10 %, 1.5 pixels."""

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(images), generator=generator)

    angle, zoom = between(-0.16, 0.16), between(0.98, 1.1)  # radians; above 1 shrinks
    shift = 3.0 / images.shape[-1]
    theta = torch.stack(
        [
            torch.stack([zoom * angle.cos(), -zoom * angle.sin(), between(-shift, shift)], dim=-1),
            torch.stack([zoom * angle.sin(), zoom * angle.cos(), between(-shift, shift)], dim=-1),
        ],
        dim=1,
    )  # [n, 2, 3]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", align_corners=False)


class Judge(nn.Module):
    """A small classifier of digits, and the place where real and generated digits are compared.

    Buffers `real_mean` and `real_covariance` describe the features of the held-out real digits.
    """

    FEATURES = 32
    real_mean: Tensor
    real_covariance: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.AvgPool2d(2),
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * (SIDE // 8) ** 2, self.FEATURES),
        )
        self.head = nn.Linear(self.FEATURES, CLASSES)
        self.register_buffer("real_mean", torch.zeros(self.FEATURES))
        self.register_buffer("real_covariance", torch.eye(self.FEATURES))

    def features(self, images: Tensor) -> Tensor:
        """`[n, 3, 32, 32]` in [0, 1] to `[n, 32]`."""
        return self.body(images.mean(1, keepdim=True))

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[n, 10]`."""
        return self.head(F.relu(self.features(images)))

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Share of images that the judge takes for their label."""
        return (self(images).argmax(-1) == labels).float().mean().item()

    @torch.no_grad()
    def distance(self, images: Tensor) -> float:
        """Frechet distance between these images and the held-out real ones; 0 is the best."""
        mean, covariance = moments(self.features(images))
        return frechet(mean, covariance, self.real_mean.double(), self.real_covariance.double())


def load_judge(directory: Path) -> Judge | None:
    """The judge beside a model that draws digits, in evaluation mode; None if there is none."""
    file = directory / "judge.safetensors"
    if not file.is_file():
        return None
    judge = Judge()
    judge.load_state_dict(load_file(file))
    return judge.eval()


def train_judge(seed: int = 0, epochs: int = 30) -> Judge:
    """A judge trained on the real training digits, in evaluation mode; takes seconds."""
    digits, generator = load_digits("train"), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    judge = Judge()
    steps = epochs * len(digits.labels) // 64
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(digits.labels), (64,), generator=generator)
        loss = F.cross_entropy(judge(jitter(digits.images[rows], generator)), digits.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        mean, covariance = moments(judge.features(load_digits("heldout").images))
    judge.real_mean.copy_(mean)
    judge.real_covariance.copy_(covariance)
    return judge.eval()
