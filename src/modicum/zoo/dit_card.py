"""The figures of nano-dit, for people (the card) and for tests (`metrics.json`)."""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modicum.models.class_models import ClassConfig
from modicum.models.dit import DiT, DiTConfig, GaussianDiffusion
from modicum.models.dit.respacing import STEPS
from modicum.zoo.digits import CLASSES, SIDE, Judge, load_digits

SAMPLING: dict[str, Any] = {"cfg": 1.5, "steps": 50, "sampler": "ddpm"}
_TIMES = 25  # at which the held-out loss is taken


def to_canvas(images: Tensor, config: ClassConfig) -> Tensor:
    """Digits `[n, 3, 32, 32]` in [0, 1] as the model sees them: `[n, channels, side, side]` in [-1, 1]."""
    small = F.adaptive_avg_pool2d(images[:, : config.in_channels], config.input_size)
    return small * 2 - 1


def for_judge(images: Tensor) -> Tensor:
    """Drawn images in [0, 1] at the size that the judge looks at, `[n, channels, 32, 32]`."""
    return F.interpolate(images, (SIDE, SIDE), mode="bicubic").clamp(0, 1)


def draw_digits(model: DiT, per_class: int, seed: int = 0, **sampling: Any) -> tuple[Tensor, Tensor]:
    """Images `[10 * per_class, channels, side, side]` and their labels; an image depends on its seed alone."""
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    seeds = [seed * 1_000_003 + index for index in range(len(labels))]
    settings = {**SAMPLING, **sampling}
    images = [
        model.generate(labels[part], seed=[seeds[i] for i in part.tolist()], **settings)
        for part in torch.arange(len(labels)).split(50)
    ]
    return torch.cat(images), labels


@torch.no_grad()
def noise_error(model: DiT, images: Tensor, labels: Tensor, seed: int = 0) -> float:
    """Mean squared error of the guessed noise over images on the canvas and times spread over the thousand."""
    generator, diffusion = torch.Generator().manual_seed(seed), GaussianDiffusion()
    errors = []
    for time in torch.arange(STEPS // _TIMES // 2, STEPS, STEPS // _TIMES):
        noise, t = torch.randn(images.shape, generator=generator), time.repeat(len(images))
        errors.append(diffusion.losses(lambda x, s: model(x, s, labels), images, t, noise).mse.mean())
    return torch.stack(errors).mean().item()


@torch.no_grad()
def measure(model: DiT, judge: Judge, per_class: int, seed: int) -> dict[str, Any]:
    """Quality of the guesses and of the pictures.

    Args:
        model: in evaluation mode, its weights as stored.
        judge: trained on real digits.
        per_class: digits to draw of each class.
        seed: of the drawing.
    """
    real, known = load_digits("heldout"), load_digits("train")
    canvas = to_canvas(real.images, model.config)
    shrunk = for_judge((canvas + 1) / 2)
    images, labels = draw_digits(model, per_class, seed)
    drawn = for_judge(images)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "heldout_digits": len(real.labels),
        "heldout_noise_error": noise_error(model, canvas, real.labels),
        "real_accuracy": judge.accuracy(real.images, real.labels),
        "train_distance": judge.distance(known.images),
        "shrunk_accuracy": judge.accuracy(shrunk, real.labels),
        "shrunk_distance": judge.distance(shrunk),
        "drawn": len(labels),
        "sampling": SAMPLING,
        "drawn_accuracy": judge.accuracy(drawn, labels),
        "drawn_distance": judge.distance(drawn),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


CARD = """---
license: apache-2.0
tags: [modicum, nano, dit, image-generation, diffusion]
---
# nano-dit

A class-conditional diffusion transformer (DiT) of {parameters:,} parameters that draws handwritten digits of
{side}x{side} pixels. It exists to try, test and teach the compression of such models, depth pruning first, without a
download.

| | |
|---|---|
| Data | the 1797 digits of scikit-learn (UCI optical digits) at {side}x{side}; every fifth is held out |
| Picture | {side}x{side} grey pixels in patches of {patch}x{patch}: {tokens} tokens |
| Transformer | {depth} blocks, {width} channels, {heads} heads |
| Diffusion | 1000 steps, learned variance; {dropout:.0%} of the labels dropped in training |
| Training | {steps:,} steps, {minutes} minutes, torch {torch} |
| Held-out squared error of the noise | {heldout_noise_error:.4f} |
| Weights | moving average, bfloat16 |

| judged by a classifier that saw real digits only | accuracy | Frechet distance to held-out digits |
|---|---|---|
| held-out digits | {real_accuracy:.3f} | 0 |
| training digits | | {train_distance:.1f} |
| held-out digits shrunk to {side}x{side} | {shrunk_accuracy:.3f} | {shrunk_distance:.1f} |
| {drawn} drawn digits | {drawn_accuracy:.3f} | {drawn_distance:.1f} |

Drawn with {sampler}, {sampling_steps} steps, guidance {cfg}; enlarged to 32x32 for the judge. The distance lives in the
classifier's own feature space: compare it with the other rows and with nothing else. `judge.safetensors` holds the
classifier and the statistics of the held-out digits, `metrics.json` all the figures.

Train it again: `python -m modicum.zoo.train nano-dit {budget} --seed {seed}` (needs scikit-learn).
"""


def card(metrics: dict[str, Any], config: DiTConfig) -> str:
    """The model card, in Markdown."""
    sampling = metrics["sampling"]
    return CARD.format(
        side=config.input_size,
        patch=config.patch_size,
        tokens=config.tokens,
        depth=config.depth,
        width=config.hidden_size,
        heads=config.num_heads,
        dropout=config.class_dropout_prob,
        sampler=sampling["sampler"].upper(),
        sampling_steps=sampling["steps"],
        cfg=sampling["cfg"],
        **metrics,
    )
