"""The handwritten digits as training data for diffusion models that draw them."""

from __future__ import annotations

import torch
from torch import Tensor

from modicum.data.samples import Samples
from modicum.models.class_models import ClassConfig
from modicum.zoo.digits import CLASSES, jitter, load_digits
from modicum.zoo.dit_card import to_canvas


class DigitSamples(Samples):
    """The training digits at the size of a model, turned and shifted a little on every visit.

    Args:
        config: of the model.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """

    def __init__(self, config: ClassConfig) -> None:
        self.config, self.digits = config, load_digits("train")
        self.count = len(self.digits.labels)

    def rows(self, rows: Tensor, generator: torch.Generator, epoch: int) -> dict[str, Tensor]:
        """Pictures `x0` `[size, channels, side, side]` in [-1, 1] and labels `y`."""
        images = jitter(self.digits.images[rows], generator)
        return {"x0": to_canvas(images, self.config), "y": self.digits.labels[rows]}


def draws_digits(config: ClassConfig) -> bool:
    """Whether a model of this configuration can be shown the digits."""
    return config.pixel_space and config.num_classes == CLASSES and config.in_channels in (1, 3)
