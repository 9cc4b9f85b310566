"""What images are to show: labels for VAR, prompts or text features for Infinity, and a seed for each image."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modicum.errors import InvalidSetting, UnknownName, UnusableData
from modicum.evaluate.drawing import Request
from modicum.models.infinity import Infinity, Resolution, TextFeatures
from modicum.models.next_scale import NextScaleModel, Schedule
from modicum.models.state_files import read_tensors
from modicum.models.var import VAR

NEGATIVE = "negative"  # name of the tensor of a features file that is to be led away from
SHAPE = ("ratio", "pixels")  # settings that change the token maps


def request(
    model: NextScaleModel,
    *,
    labels: Sequence[int] = (),
    prompts: Sequence[str] = (),
    features: str | Path | None = None,
    negative: str | None = None,
    count: int | None = None,
    seed: int = 0,
    at_once: int = 8,
    **sampling: Any,
) -> Request:
    """What to draw: image i has seed `seed + i` and the label or prompt whose turn it is.

    Args:
        model: VAR or Infinity.
        labels: classes, for VAR; without any, the seed of an image chooses its class.
        prompts: texts, for an Infinity with a text encoder.
        features: safetensors file of text features instead, one tensor `[tokens, channels]` per prompt; one called
            "negative" is led away from.
        negative: text that Infinity is led away from.
        count: images in all; by default one per label or prompt.
        seed: of the first image.
        at_once: images per batch.
        **sampling: arguments of the model's `generate`, such as cfg.

    Raises:
        InvalidSetting: inputs that this model does not take, or none; a label, count or seed out of range.
        UnknownName: a sampling setting that this model does not have.
    """
    known = set(inspect.signature(model.generate).parameters) - {"seed", "cache", "count"}
    for key in sampling:
        if key not in known:
            raise UnknownName.among(f"sampling setting of {type(model).__name__}", key, known)
    if isinstance(model, VAR):
        if prompts or features or negative:
            raise InvalidSetting("VAR draws classes and reads no prompts.", "Say what to draw with --label.")
        seeds = seeds_from(seed, count or max(len(labels), 1))
        chosen_labels = labels or random_labels(model.config.num_classes, seeds)
        return _of_labels(model, chosen_labels, seeds, sampling, at_once)
    if not isinstance(model, Infinity):
        raise InvalidSetting(
            f"{type(model).__name__} takes neither labels nor prompts.", "Call its generate()."
        )
    if labels:
        raise InvalidSetting(
            "Infinity reads prompts and knows no classes.", "Say what to draw with --prompt."
        )
    texts, away = _texts(model, prompts, features, negative)
    seeds = seeds_from(seed, count or len(texts))
    settings = {**sampling, "negative": away} if away is not None else sampling
    chosen = list(islice(cycle(texts.items()), len(seeds)))
    return Request(
        {"prompts": [rows for _, rows in chosen]},
        tuple(name for name, _ in chosen),
        _schedule(model, sampling),
        seeds,
        settings,
        at_once,
        pack=TextFeatures.of,
    )


def _of_labels(
    model: VAR, labels: Sequence[int], seeds: tuple[int, ...], sampling: dict[str, Any], at_once: int
) -> Request:
    classes = model.config.num_classes
    for label in labels:
        if not 0 <= label < classes:
            raise InvalidSetting(f"There is no class {label}.", f"Labels go from 0 to {classes - 1}.")
    chosen = list(islice(cycle(labels), len(seeds)))
    return Request({"labels": chosen}, tuple(map(str, chosen)), model.schedule, seeds, sampling, at_once)


def random_labels(classes: int, seeds: Sequence[int]) -> list[int]:
    """The class, out of so many, that belongs to each seed."""
    return [
        int(torch.randint(classes, (1,), generator=torch.Generator().manual_seed(seed))) for seed in seeds
    ]


def _schedule(model: Infinity, sampling: Mapping[str, Any]) -> Schedule:
    """The maps of an image of the wanted shape."""
    ratio, pixels = sampling.get("ratio", 1.0), sampling.get("pixels")
    return Resolution.of(ratio, pixels or model.config.pixels).schedule


def seeds_from(first: int, count: int) -> tuple[int, ...]:
    """So many seeds in a row.

    Raises:
        InvalidSetting: none at all, or a negative one.
    """
    if count < 1 or first < 0:
        raise InvalidSetting(
            f"{count} images from seed {first} cannot be drawn.", "Ask for 1 image or more and a seed from 0."
        )
    return tuple(range(first, first + count))


def _texts(
    model: Infinity, prompts: Sequence[str], features: str | Path | None, negative: str | None
) -> tuple[dict[str, Tensor], TextFeatures | None]:
    """Features of every prompt by its name, and of what is led away from."""
    if features is not None:
        if prompts or negative:
            raise InvalidSetting(
                "Prompts are given twice, as texts and as features.", "Leave one of them out."
            )
        return read_features(features)
    if not prompts:
        raise InvalidSetting("Nothing says what to draw.", "Give --prompt, or --features with its features.")
    if model.text_encoder is None:
        raise InvalidSetting(
            "This Infinity has no text encoder, so it cannot read prompts.",
            "Name a directory of flan-t5-xl with --text-encoder, or give --features.",
        )
    encoded = model.text_encoder.encode(prompts)
    rows = encoded.values.split(encoded.lengths)
    return dict(zip(prompts, rows, strict=True)), model.text_encoder.encode([negative]) if negative else None


def read_features(file: str | Path) -> tuple[dict[str, Tensor], TextFeatures | None]:
    """Text features in a safetensors file: one tensor `[tokens, channels]` per prompt, in the order of their names.

    Raises:
        CheckpointError: the file cannot be read.
        UnusableData: it holds no prompt, or tensors of another shape.
    """
    tensors = {name: tensor.float() for name, tensor in sorted(read_tensors(Path(file)).items())}
    for name, rows in tensors.items():
        if rows.dim() != 2 or not len(rows):
            raise UnusableData(
                f"{file} holds {name!r} of shape {list(rows.shape)}.", "Text features are [tokens, channels]."
            )
    away = tensors.pop(NEGATIVE, None)
    if not tensors:
        raise UnusableData(f"{file} holds no prompt.", "Give one tensor [tokens, channels] per prompt.")
    return tensors, None if away is None else TextFeatures.of([away])


def calibration(model: NextScaleModel, wanted: Request, images: int = 4) -> list[dict[str, Any]]:
    """Batches to fit a cache policy with: classes spread over all there are, or the first prompts.

    For VAR they do not depend on what is drawn, so that an image depends on nothing but its label and seed. Their
    token maps are the usual ones of the model.
    """
    settings = {key: value for key, value in wanted.settings.items() if key not in SHAPE}
    if isinstance(model, VAR):
        count = min(images, model.config.num_classes)
        labels = [index * model.config.num_classes // count for index in range(count)]
        return [{"labels": labels, "seed": list(range(count)), **settings}]
    distinct = [wanted.captions.index(caption) for caption in dict.fromkeys(wanted.captions)][:images]
    parts = [wanted.part(slice(index, index + 1)) for index in distinct]
    return [{key: value for key, value in part.items() if key not in SHAPE} | {"seed": [0]} for part in parts]


def guided(model: NextScaleModel, wanted: Request) -> bool:
    """Whether a request runs unconditional rows beside the conditional ones."""
    off = 0 if isinstance(model, VAR) else 1
    return bool(wanted.settings.get("cfg") != off)
