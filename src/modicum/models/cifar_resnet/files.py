"""CIFAR residual networks on disk.

config.json          widths
model.safetensors    parameters and running statistics, original names
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from modicum.models.cifar_resnet.config import CifarResNetConfig
from modicum.models.cifar_resnet.model import CifarResNetForImageClassification
from modicum.models.state_files import (
    Prepare,
    fill,
    read_json,
    read_tensors,
    stored,
    unchanged,
    write_directory,
)

CONFIG, MODEL = "config.json", "model.safetensors"
_COUNTERS = ("num_batches_tracked",)  # matter to training from scratch only
_PARALLEL = "module."  # in front of every name, where a model was saved from several devices


def load_cifar_resnet(
    directory: str | Path,
    *,
    device: str = "cpu",
    tensors: Mapping[str, Tensor] | None = None,
    prepare: Prepare = unchanged,
) -> CifarResNetForImageClassification:
    """Open a directory that `convert` or `save` wrote, float32, in evaluation mode.

    Args:
        directory: with config.json and model.safetensors.
        device: where it goes.
        tensors: its weights, if they are not to be read from the directory.
        prepare: called with the model before it has its weights.

    Raises:
        CheckpointError: a file is missing, unreadable, or at odds with the config.
    """
    directory = Path(directory)
    tensors = read_tensors(directory / MODEL) if tensors is None else tensors
    return _assemble(read_config(directory), tensors, prepare).to(device)


def is_cifar_resnet(directory: Path) -> bool:
    """Whether a directory holds a ResNet for CIFAR; False for damaged ones."""
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == CifarResNetConfig.model_type


def read_config(directory: Path) -> CifarResNetConfig:
    """The sizes of a directory.

    Raises:
        CheckpointError: config.json is missing or no JSON object.
        InvalidSetting: its sizes are not possible.
    """
    return CifarResNetConfig.from_dict(read_json(directory / CONFIG, "a ResNet for CIFAR"))


def convert(weights: str | Path, out: str | Path, config: CifarResNetConfig) -> Path:
    """Write an original checkpoint as a directory that `load_cifar_resnet` opens.

    Args:
        weights: `.th`, `.pth` or `.safetensors`, bare weights or under "state_dict".
        out: directory to write; it appears whole or not at all.
        config: for example `CifarResNetConfig.of_depth(56)`.

    Raises:
        CheckpointError: the file is unreadable, lacks tensors, has others, or was made for other sizes.
        OutputExists: `out` is there already.
    """
    tensors = read_tensors(Path(weights), inside=(("state_dict",),))
    return save(_assemble(config, {name.removeprefix(_PARALLEL): t for name, t in tensors.items()}), out)


def save(model: CifarResNetForImageClassification, out: str | Path) -> Path:
    """Write a model as a directory that `load_cifar_resnet` opens.

    Raises:
        OutputExists: `out` is there already.
    """
    texts = {CONFIG: json.dumps(model.measured_config().to_dict(), indent=2) + "\n"}
    return write_directory(Path(out), texts, {MODEL: stored(model, lambda name: False, _COUNTERS)})


def _assemble(
    config: CifarResNetConfig, tensors: Mapping[str, Tensor], prepare: Prepare = unchanged
) -> CifarResNetForImageClassification:
    model = CifarResNetForImageClassification(config)
    prepare(model)
    fill(model, tensors, "ResNet", lambda name: torch.float32, derived=_COUNTERS)
    return model.eval()
