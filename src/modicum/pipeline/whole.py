"""Models that are read, changed and written as a whole: those of transformers, DiT, SiT, MAR, and ResNets for CIFAR.

A step that trains needs float32 weights whatever is stored, so that is what is loaded; what is written has the dtype
that the original has on disk. A weight that no step touched goes through unchanged, bit for bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from modicum.errors import CheckpointError
from modicum.formats.manifest import Manifest
from modicum.formats.shards import Shards
from modicum.models.cifar_resnet import (
    CifarResNetConfig,
    CifarResNetForImageClassification,
    load_cifar_resnet,
)
from modicum.models.cifar_resnet import save as save_cifar_resnet
from modicum.models.class_models import ClassModel, class_kind, load_class_model, save_class_model
from modicum.pipeline.checkpoint import file_hash
from modicum.pipeline.loading import load_model, refuse_images
from modicum.pipeline.saving import save_model
from modicum.pipeline.source import stored_dtype


def model_type(directory: Path) -> str | None:
    """The `model_type` of config.json; None if there is none to read."""
    try:
        return str(json.loads((directory / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def open_whole(directory: Path, device: str = "cpu") -> Any:
    """The model of a directory in float32 and evaluation mode.

    Raises:
        CheckpointError: files are missing or damaged, or hold compressed weights, which cannot be trained.
        UnsupportedModel: a next-scale model, whose pixels lie in other files.
    """
    manifest = Manifest.present(directory)
    if manifest is not None and (manifest.forms() or manifest.coded):
        raise CheckpointError(
            f"{directory} holds compressed weights, which cannot be trained.",
            "Begin with the original, and put steps over the whole model first.",
        )
    if class_kind(directory):
        return load_class_model(directory, device=device)
    if model_type(directory) == CifarResNetConfig.model_type:
        return load_cifar_resnet(directory, device=device)
    refuse_images(
        directory, "A step over the whole model", "Open it with modicum.load and change it in memory."
    )
    return load_model(directory, torch.float32, device)


def write_whole(model: Any, directory: Path, original: Path, manifest: Manifest) -> None:
    """Write a model of `open_whole` where nothing is yet, with modicum.json.

    Args:
        model: to write; it is cast to the dtype of the original.
        directory: appears whole or not at all.
        original: directory whose tokenizer goes along.
        manifest: what is known of its making.
    """
    shards = Shards(original)
    if isinstance(model, ClassModel | CifarResNetForImageClassification):
        if isinstance(model, CifarResNetForImageClassification):
            save_cifar_resnet(model, directory)
        else:
            save_class_model(model, directory, half=stored_dtype(model.config, shards) == torch.bfloat16)
        written = manifest.model_copy(update={"files": _hashes(directory)})
        written.write(directory)
        return
    model = model.to("cpu", stored_dtype(None, shards))
    save_model(model, directory, original, manifest=manifest)


def _hashes(directory: Path) -> dict[str, str]:
    return {file.name: file_hash(file) for file in sorted(directory.glob("*.safetensors"))}
