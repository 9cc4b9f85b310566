"""The models that draw images, by the `model_type` of their directory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from modicum.models.next_scale import NextScaleModel
from modicum.models.state_files import Prepare, read_json, unchanged

Kind = Literal["var", "infinity"]

_LOADERS: dict[str, tuple[str, str]] = {
    "var": ("modicum.models.var", "load_var"),
    "infinity": ("modicum.models.infinity", "load_infinity"),
}

_SIZES: dict[str, tuple[str, str]] = {
    "var": ("modicum.models.var", "VARConfig"),
    "infinity": ("modicum.models.infinity", "InfinityConfig"),
}


def image_kind(directory: Path) -> Kind | None:
    """Which next-scale model a directory holds; None for anything else, damaged directories included."""
    try:
        kind = json.loads((directory / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return cast("Kind", kind) if isinstance(kind, str) and kind in _LOADERS else None


def load_image_model(
    directory: Path,
    kind: Kind,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    text_encoder: str | Path | None = None,
    transformer: Mapping[str, Tensor] | None = None,
    prepare: Prepare = unchanged,
) -> NextScaleModel:
    """A next-scale model in evaluation mode.

    Args:
        directory: as modicum writes it.
        kind: of `image_kind`.
        dtype: of the transformer; float32 by default. What turns features into pixels stays in float32.
        device: where it goes.
        text_encoder: directory of the text encoder, for a model that reads prompts.
        transformer: its tensors, if they are not to be read from the directory.
        prepare: called with the transformer while it has no weights.

    Raises:
        CheckpointError: files are missing, corrupt, or do not fit together.
    """
    module, name = _LOADERS[kind]
    load: Callable[..., NextScaleModel] = getattr(import_module(module), name)
    reads = {} if text_encoder is None else {"text_encoder": text_encoder}
    given = {"transformer": transformer, "prepare": prepare, **reads}
    return load(directory, dtype=dtype or torch.float32, device=device, **given)


def transformer_of(directory: Path, kind: Kind) -> nn.Module:
    """The transformer of a directory's sizes with initial weights; it has the names of model.safetensors.

    Raises:
        CheckpointError: config.json is missing or damaged.
        InvalidSetting: its sizes are not possible.
    """
    module, name = _SIZES[kind]
    sizes = read_json(directory / "config.json", "a model that draws images")
    config = getattr(import_module(module), name).from_dict(sizes)
    return import_module(f"{module}.transformer").Transformer(config)
