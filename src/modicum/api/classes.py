"""DiT, SiT and MAR: open one with the autoencoder of its latents, and say what it is to draw."""

from __future__ import annotations

import inspect
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
from modicum.models.class_models import ClassModel
from modicum.models.dit.model import SAMPLERS
from modicum.models.dit.vae import load_vae
from modicum.models.mar import MAR
from modicum.zoo.locate import locate

CFG, STEPS = 1.5, 250  # as published for DiT and SiT
MAR_SETTINGS = {"cfg": 3.0, "iterations": 64, "steps": 100}  # as published
EQUAL_STEPS = "heun"  # solver of "ode" when the steps are counted; by default it chooses them itself


def load_denoiser(
    model: str | Path,
    *,
    vae: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> tuple[ClassModel, nn.Module | None]:
    """Open a DiT, SiT or MAR, compressed or not, ready to draw pictures.

    Args:
        model: a directory of modicum or diffusers, or a nano model's name.
        vae: directory of a diffusers AutoencoderKL, for a model that draws latents; by default that of the diffusers
            pipeline that `model` is.
        dtype: compute dtype of the transformer; float32 by default.
        device: where both go.

    Returns:
        The model, and the autoencoder of a model of latents.

    Raises:
        UnsupportedModel: it draws no classes out of noise.
        InvalidSetting: an autoencoder is missing, or given to a model that needs none or another one.
    """
    opened = load(model, dtype=dtype, device=device)
    if not isinstance(opened, ClassModel):
        raise UnsupportedModel(
            f"{Path(model).name} is no diffusion transformer.", "Give a DiT, SiT or MAR model, or nano-dit."
        )
    if opened.config.pixel_space:
        if vae is not None:
            raise InvalidSetting(f"{Path(model).name} draws pixels itself.", "Leave --vae out.")
        return opened, None
    beside = locate(model) / "vae"
    if vae is None and (beside / "config.json").is_file():
        vae = beside
    if vae is None:
        raise InvalidSetting(
            f"{Path(model).name} draws latents, which only an autoencoder turns into pictures.",
            "Name the directory of its AutoencoderKL with --vae, such as a copy of stabilityai/sd-vae-ft-ema.",
        )
    return opened, load_vae(vae, opened.config.in_channels, device)


def request(
    model: ClassModel,
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
        **sampling: cfg, steps and sampler of `DiT.generate`, or cfg, iterations and steps of `MAR.generate`.

    Raises:
        InvalidSetting: a label, count or seed out of range, or a setting that this model does not have.
    """
    classes = model.config.num_classes
    for label in labels:
        if not 0 <= label < classes:
            raise InvalidSetting(f"There is no class {label}.", f"Labels go from 0 to {classes - 1}.")
    seeds = seeds_from(seed, count or max(len(labels), 1))
    chosen = tuple(islice(cycle(labels or random_labels(classes, seeds)), len(seeds)))
    return ClassRequest(chosen, seeds, _complete(model, sampling), at_once)


def _complete(model: ClassModel, sampling: dict[str, Any]) -> dict[str, Any]:
    """Sampling settings with the defaults of the model, so that what is reported says how it was drawn."""
    known = inspect.signature(model.generate).parameters
    for key in sampling:
        if key not in known:
            raise InvalidSetting(
                f"{key} says nothing to a {model.config.kind!r} model.",
                "MAR takes cfg, iterations and steps; DiT and SiT take cfg, steps and sampler.",
            )
    if isinstance(model, MAR):
        return {**MAR_SETTINGS, **sampling}
    found = {"cfg": CFG, "sampler": SAMPLERS[model.config.kind][0], **sampling}
    if found["sampler"] == "ode":
        return {**found, "solver": EQUAL_STEPS} if "steps" in sampling else found
    return {"steps": STEPS, **found}
