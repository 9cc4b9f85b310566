"""The models that draw classes out of noise, DiT, SiT and MAR, by what their directory says.

Three layouts are opened: modicum's own (config.json with a `model_type`), the directory of a `DiTTransformer2DModel`
of diffusers, and a diffusers pipeline that holds one in `transformer`. Only the first is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from modicum.models.dit import DiT, DiTConfig, load_dit
from modicum.models.dit import files as dit_files
from modicum.models.dit.diffusers_layout import CLASS, from_diffusers, read_config
from modicum.models.mar import MAR, MARConfig, load_mar
from modicum.models.mar import files as mar_files
from modicum.models.state_files import Prepare, read_json, unchanged

ClassModel = DiT | MAR
ClassConfig = DiTConfig | MARConfig
ClassKind = Literal["dit", "mar"]


def network_of(directory: Path) -> Path:
    """Where the weights lie: the directory itself, or `transformer` of a diffusers pipeline."""
    inner = directory / "transformer"
    return inner if (directory / "model_index.json").is_file() and inner.is_dir() else directory


def class_kind(directory: Path) -> ClassKind | None:
    """Which of these models a directory holds; None for anything else, damaged directories included."""
    data = _config(network_of(directory))
    if data.get("model_type") == DiTConfig.model_type or data.get("_class_name") == CLASS:
        return "dit"
    return "mar" if data.get("model_type") == MARConfig.model_type else None


def class_config(directory: Path) -> ClassConfig:
    """The sizes of a model of `class_kind`.

    Raises:
        CheckpointError: config.json is missing or damaged.
        InvalidSetting: its sizes are not possible.
    """
    data = read_json(network_of(directory) / "config.json", "a model that draws classes")
    if data.get("_class_name") == CLASS:
        return read_config(data)
    config = MARConfig if data.get("model_type") == MARConfig.model_type else DiTConfig
    return config.from_dict(data)


def load_class_model(
    directory: Path,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    tensors: Mapping[str, Tensor] | None = None,
    prepare: Prepare = unchanged,
) -> ClassModel:
    """A model of `class_kind` in evaluation mode.

    Args:
        directory: in one of the three layouts.
        dtype: of the parameters.
        device: where it goes.
        tensors: its weights under the names of its layout, if they are not to be read from the directory.
        prepare: called with the model, while it has no weights, if they are given.

    Raises:
        CheckpointError: files are missing, corrupt, or do not fit together.
    """
    if tensors is None:
        load = load_mar if class_kind(directory) == "mar" else load_dit
        return load(directory, dtype=dtype, device=device)
    config = class_config(directory)
    if isinstance(config, MARConfig):
        return mar_files.assemble(config, tensors, dtype, prepare).to(device)
    if in_diffusers_layout(directory):
        tensors = from_diffusers(tensors, config)
    return dit_files.assemble(config, tensors, dtype, prepare).to(device)


def empty_class_model(directory: Path, dtype: torch.dtype = torch.float32) -> ClassModel:
    """A model of `class_kind` on the meta device, without weights; arguments and errors as of `class_config`."""
    config = class_config(directory)
    with torch.device("meta"):
        model: ClassModel = MAR(config) if isinstance(config, MARConfig) else DiT(config)
    return model.to(dtype).eval()


def in_diffusers_layout(directory: Path) -> bool:
    """Whether the tensors of a model of `class_kind` have the names of diffusers."""
    return _config(network_of(directory)).get("_class_name") == CLASS


def save_class_model(model: ClassModel, out: Path, *, half: bool = False) -> Path:
    """Write a model in modicum's layout; weight forms in it are written as they are.

    Raises:
        OutputExists: `out` is there already.
    """
    return (
        mar_files.save(model, out, half=half)
        if isinstance(model, MAR)
        else dit_files.save(model, out, half=half)
    )


def _config(directory: Path) -> dict[str, Any]:
    try:
        data = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
