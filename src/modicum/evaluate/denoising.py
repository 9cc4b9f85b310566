"""Drawing classes with DiT, SiT or MAR, and how long it takes.

Every picture has a seed of its own for its first noise and for the noise of every step, so it is the same picture
alone, in a batch, and from a pruned model: what differs between two models then is the models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from modicum.errors import InvalidSetting
from modicum.evaluate.inference import device_of, evaluating
from modicum.models.class_models import ClassModel

StepProgress = Callable[[int, int], None]
"""Called with the number of steps that are done, and of all steps of the batch."""


@dataclass(frozen=True)
class ClassRequest:
    """What is to be drawn: a class and a seed per picture, and settings for all of them.

    Attributes:
        labels: one class per picture.
        seeds: one per picture.
        settings: further arguments of the model's `generate`, such as cfg and steps.
        at_once: pictures per batch.

    Raises:
        InvalidSetting: no picture at all, or another number of labels than of seeds.
    """

    labels: tuple[int, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    at_once: int = 8

    def __post_init__(self) -> None:
        if not self.seeds or self.at_once < 1:
            raise InvalidSetting(
                f"{len(self.seeds)} images are to be drawn, {self.at_once} at once.", "Ask for 1 or more."
            )
        if len(self.labels) != len(self.seeds):
            raise InvalidSetting(
                f"There are {len(self.labels)} labels for {len(self.seeds)} images.", "Give one per image."
            )

    def batches(self) -> list[dict[str, Any]]:
        """Arguments of the model's `generate`, batch by batch."""
        parts = [slice(i, i + self.at_once) for i in range(0, len(self.seeds), self.at_once)]
        return [
            {"labels": self.labels[part], "seed": list(self.seeds[part]), **self.settings} for part in parts
        ]


@dataclass(frozen=True)
class Drawn:
    """Pictures and what drawing them took.

    Attributes:
        images: float32 `[B, C, H, W]` in [0, 1], on the CPU.
        seconds: of each batch, the autoencoder included.
    """

    images: Tensor
    seconds: tuple[float, ...]


def draw_classes(
    model: ClassModel,
    request: ClassRequest,
    vae: nn.Module | None = None,
    progress: StepProgress = lambda done, of: None,
) -> Drawn:
    """Draw all pictures of a request.

    Args:
        model: draws pixels, or latents with the `vae` that decodes them.
        request: what to draw.
        vae: a diffusers AutoencoderKL.
        progress: told after every step of every batch.
    """
    with evaluating(model):
        runs = [draw_batch(model, batch, vae, progress) for batch in request.batches()]
    return Drawn(torch.cat([images for images, _ in runs]), tuple(seconds for _, seconds in runs))


def draw_batch(
    model: ClassModel,
    batch: Mapping[str, Any],
    vae: nn.Module | None = None,
    progress: StepProgress = lambda done, of: None,
) -> tuple[Tensor, float]:
    """Pictures of one batch, float32 on the CPU, and the seconds they took; arguments as of `draw_classes`."""
    device = device_of(model)
    start = _now(device)
    images = model.generate(**batch, vae=vae, progress=_counted(progress))
    seconds = _now(device) - start
    return images.float().cpu(), seconds


def _counted(progress: StepProgress) -> Callable[[float], None]:
    """Progress that is told as a share of the way, as steps done and steps in all (an estimate for uneven ones)."""
    steps = count(1)

    def tell(share: float) -> None:
        done = next(steps)
        progress(done, max(done, round(done / max(share, 1e-3))))

    return tell


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()
