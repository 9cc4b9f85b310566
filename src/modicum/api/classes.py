"""Diffusion transformers: open one with the autoencoder of its latents, and say what it is to draw."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.api.inputs import random_labels, seeds_from
from modicum.api.loading import load
from modicum.errors import InvalidSetting, UnsupportedModel
from modicum.evaluate.denoising import ClassRequest
from modicum.models.dit import DiT
from modicum.models.dit.model import SAMPLERS
from modicum.models.dit.vae import load_vae

CFG, STEPS = 1.5, 250  # as published
EQUAL_STEPS = "heun"  # solver of "ode" when the steps are counted; by default it chooses them itself


def load_denoiser(
    model: str | Path,
    *,
    vae: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> tuple[DiT, nn.Module | None]:
    """Open a DiT or SiT, pruned or not, ready to draw pictures.

    Args:
        model: a directory, or a nano model's name.
        vae: directory of a diffusers AutoencoderKL, for a model that draws latents.
        dtype: compute dtype of the transformer; float32 by default.
        device: where both go.

    Returns:
        The model, and the autoencoder of a model of latents.

    Raises:
        UnsupportedModel: it is no diffusion transformer.
        InvalidSetting: an autoencoder is missing, or given to a model that needs none or another one.
    """
    opened = load(model, dtype=dtype, device=device)
    if not isinstance(opened, DiT):
        raise UnsupportedModel(
            f"{Path(model).name} is no diffusion transformer.", "Give a DiT or SiT model, or nano-dit."
        )
    if opened.config.pixel_space:
        if vae is not None:
            raise InvalidSetting(f"{Path(model).name} draws pixels itself.", "Leave --vae out.")
        return opened, None
    if vae is None:
        raise InvalidSetting(
            f"{Path(model).name} draws latents, which only an autoencoder turns into pictures.",
            "Name the directory of its AutoencoderKL with --vae, such as a copy of stabilityai/sd-vae-ft-ema.",
        )
    return opened, load_vae(vae, opened.config.in_channels, device)


def request(
    model: DiT,
    *,
    labels: Sequence[int] = (),
    count: int | None = None,
    seed: int = 0,
    at_once: int = 8,
    **sampling: Any,
) -> ClassRequest:
    """What to draw: image i has seed `seed + i` and the label whose turn it is.

    Args:
        model: knows the classes.
        labels: classes; without any, the seed of an image chooses its class.
        count: images in all; by default one per label.
        seed: of the first image.
        at_once: images per batch.
        **sampling: cfg, steps and sampler of `DiT.generate`.

    Raises:
        InvalidSetting: a label, count or seed out of range.
    """
    classes = model.config.num_classes
    for label in labels:
        if not 0 <= label < classes:
            raise InvalidSetting(f"There is no class {label}.", f"Labels go from 0 to {classes - 1}.")
    seeds = seeds_from(seed, count or max(len(labels), 1))
    chosen = tuple(islice(cycle(labels or random_labels(classes, seeds)), len(seeds)))
    return ClassRequest(chosen, seeds, _complete(model, sampling), at_once)


def _complete(model: DiT, sampling: dict[str, Any]) -> dict[str, Any]:
    """Sampling settings with the defaults of the model, so that what is reported says how it was drawn."""
    found = {"cfg": CFG, "sampler": SAMPLERS[model.config.kind][0], **sampling}
    if found["sampler"] == "ode":
        return {**found, "solver": EQUAL_STEPS} if "steps" in sampling else found
    return {"steps": STEPS, **found}
