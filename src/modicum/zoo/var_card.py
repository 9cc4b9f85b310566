"""The figures of the nano image model, for people (the card) and for tests (`metrics.json`)."""

from __future__ import annotations

import math
import platform
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modicum.models.var import VAR, VARConfig
from modicum.zoo.digits import CLASSES, Judge, load_digits

SAMPLING: dict[str, Any] = {"cfg": 1.5, "top_k": 0, "top_p": 0.95}


def draw_digits(model: VAR, per_class: int, seed: int = 0, **sampling: Any) -> tuple[Tensor, Tensor]:
    """Images `[10 * per_class, 3, 32, 32]` and their labels; an image depends on its seed alone."""
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    seeds = [seed * 1_000_003 + index for index in range(len(labels))]
    settings = {**SAMPLING, **sampling}
    images = [
        model.generate(labels[part], seed=[seeds[i] for i in part.tolist()], **settings)
        for part in torch.arange(len(labels)).split(50)
    ]
    return torch.cat(images), labels


@torch.no_grad()
def map_losses(model: VAR, images: Tensor, labels: Tensor) -> list[float]:
    """Mean negative log-likelihood of the tokens of each map, in nats, under teacher forcing."""
    tokens = model.encode(images)
    logits = model.transformer(labels, model.vae.quantize.teacher_input(tokens))
    parts = logits.split(list(model.schedule.tokens), dim=1)
    return [
        F.cross_entropy(part.flatten(0, 1), t.flatten()).item() for part, t in zip(parts, tokens, strict=True)
    ]


@torch.no_grad()
def measure(model: VAR, judge: Judge, per_class: int, seed: int) -> dict[str, Any]:
    """Quality of the tokenizer, of the predictor and of the pictures.

    Args:
        model: in evaluation mode, its weights as stored.
        judge: trained on real digits.
        per_class: digits to draw of each class.
        seed: of the drawing.
    """
    real, known = load_digits("heldout"), load_digits("train")
    rebuilt = model.decode(model.encode(real.images))
    images, labels = draw_digits(model, per_class, seed)
    used = torch.cat([tokens.flatten() for tokens in model.encode(known.images)]).unique().numel()
    return {
        "parameters": sum(p.numel() for p in model.transformer.parameters()),
        "vae_parameters": sum(p.numel() for p in model.vae.parameters()),
        "heldout_digits": len(real.labels),
        "codes_used": used,
        "rebuilt_psnr": 10 * math.log10(1 / F.mse_loss(rebuilt, real.images).item()),
        "rebuilt_accuracy": judge.accuracy(rebuilt, real.labels),
        "rebuilt_distance": judge.distance(rebuilt),
        "heldout_map_losses": map_losses(model, real.images, real.labels),
        "real_accuracy": judge.accuracy(real.images, real.labels),
        "train_distance": judge.distance(known.images),
        "drawn": len(labels),
        "sampling": SAMPLING,
        "drawn_accuracy": judge.accuracy(images, labels),
        "drawn_distance": judge.distance(images),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


CARD = """---
license: apache-2.0
tags: [modicum, nano, var, image-generation]
---
# nano-var

A class-conditional next-scale image model (VAR) of {parameters:,} parameters that draws handwritten digits of
32x32 pixels, with its multi-scale VQVAE of {vae_parameters:,}. It exists to try, test and teach the compression
of such models and of their key-value caches without a download.

| | |
|---|---|
| Data | the 1797 digits of scikit-learn (UCI optical digits), enlarged from 8x8; every fifth is held out |
| Token maps | {maps}: {total} tokens, {vocab} codes of {channels} channels, {codes_used} in use |
| Transformer | {depth} blocks, {width} channels, {heads} heads |
| Training | {steps:,} steps of the transformer, {minutes} minutes, torch {torch} |
| Weights | bfloat16 |

| judged by a classifier that saw real digits only | accuracy | Frechet distance to held-out digits |
|---|---|---|
| held-out digits | {real_accuracy:.3f} | 0 |
| training digits | | {train_distance:.1f} |
| held-out digits through the VQVAE ({rebuilt_psnr:.1f} dB) | {rebuilt_accuracy:.3f} | {rebuilt_distance:.1f} |
| {drawn} drawn digits | {drawn_accuracy:.3f} | {drawn_distance:.1f} |

Drawn with guidance {cfg}, top-p {top_p}. The distance lives in the classifier's own feature space: compare it with
the other rows and with nothing else. `judge.safetensors` holds the classifier and the statistics of the held-out
digits, `metrics.json` all the figures.

Train it again: `python -m modicum.zoo.train nano-var {budget} --seed {seed}` (needs scikit-learn).
"""


def card(metrics: dict[str, Any], config: VARConfig) -> str:
    """The model card, in Markdown."""
    return CARD.format(
        maps=", ".join(f"{side}x{side}" for side in config.patch_nums),
        total=config.schedule.total,
        vocab=config.vae.vocab_size,
        channels=config.vae.z_channels,
        depth=config.depth,
        width=config.embed_dim,
        heads=config.num_heads,
        cfg=metrics["sampling"]["cfg"],
        top_p=metrics["sampling"]["top_p"],
        **metrics,
    )
