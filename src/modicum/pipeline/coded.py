"""Open a checkpoint whose weights are coded without loss, or write it out as the original."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from modicum.errors import CheckpointError, InvalidSetting, OutputExists
from modicum.formats.coded import CodedShards
from modicum.formats.coded_models import fill, install, runs, start
from modicum.formats.dfloat11 import KEY, is_published, open_shards, read_published
from modicum.formats.irregular import check, reshape
from modicum.formats.manifest import Manifest
from modicum.formats.merge import join_all, plan_shards
from modicum.formats.native import GUARD
from modicum.formats.shards import SINGLE, Shards, write_json, write_tensors
from modicum.models import CheckpointMap, load_tensors
from modicum.models.cifar_resnet import is_cifar_resnet
from modicum.models.class_models import class_kind, empty_class_model, in_diffusers_layout
from modicum.models.dit.files import DIFFUSERS_MODEL
from modicum.models.image_models import image_kind
from modicum.pipeline.checkpoint import copy_companions, file_hash
from modicum.pipeline.images import copy_beside
from modicum.pipeline.run import check_space
from modicum.pipeline.saving import published
from modicum.pipeline.source import built, check_sizes, read_config, stored_dtype

REST_BYTES = 1 << 28
"""Tensors that are not coded are copied in parts of at most this size."""


def load_coded(
    directory: Path,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    *,
    offload: bool = False,
    prefetch: bool = False,
) -> nn.Module:
    """A model of transformers whose weights are coded without loss, in evaluation mode.

    DFloat11 stays coded, and every block is decoded before it runs; what is only for storage is expanded.

    Args:
        directory: written by modicum, or a published DFloat11 checkpoint.
        dtype: compute dtype; that of the checkpoint by default.
        device: where the model goes.
        offload: keep the codes in the memory of the host.
        prefetch: on a GPU, decode the next block beside the computation (see `weights.lanes`).

    Raises:
        CheckpointError: files are missing, damaged, or do not fit together.
    """
    config, manifest = read_config(directory), Manifest.present(directory) or Manifest()
    for key in ("quantization_config", *GUARD):
        if hasattr(config, key):
            delattr(config, key)
    model = built(config, torch.bfloat16, directory)
    shards = read_published(directory, model) if is_published(directory) else open_shards(directory)
    assert isinstance(shards, CodedShards)
    check_sizes(config, shards, directory)
    dtype = dtype or stored_dtype(config, shards)
    model = built(config, dtype, directory)
    reshape(model, manifest)
    check(model, manifest, shards)
    groups = install(model, shards.layout, shards.stored.tensors) if runs(shards) else []
    _load_rest(
        model, shards, {key for name in shards.layout.groups for key in shards.layout.keys(name)}, device
    )
    fill(groups, shards, torch.device(device), offload)
    if runs(shards):
        start(model, groups, prefetch)
    _read_generation(model, directory)
    return model.eval()


def _load_rest(model: nn.Module, shards: CodedShards, arrays: set[str], device: str) -> None:
    """Read every parameter that the model still has."""
    names = CheckpointMap(shards.names(), model)
    needed = [name for name in names.needed() if name not in arrays]
    for name in needed:
        tensors = {part.name: shards.read(part.name) for part in names.sources(name)}
        load_tensors(model, {name: names.assemble(name, tensors).to(device)})
    for module in model.modules():
        for key, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                module._buffers[key] = buffer.to(device)


def _read_generation(model: Any, directory: Path) -> None:
    if (directory / "generation_config.json").is_file():
        try:
            model.generation_config = GenerationConfig.from_pretrained(directory, local_files_only=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{directory / 'generation_config.json'} is damaged.", "Copy it again."
            ) from error


def original_shards(directory: Path) -> Shards:
    """The tensors of a checkpoint of any format, those of the original if they are coded without loss.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    if not directory.is_dir() or not is_published(directory):
        return open_shards(directory)
    if class_kind(directory):
        return read_published(directory, empty_class_model(directory))
    return read_published(directory, built(read_config(directory), torch.bfloat16, directory))


def own_kind(directory: Path) -> bool:
    """Whether a directory holds a model that modicum defines and that is one state dict."""
    return class_kind(directory) is not None or is_cifar_resnet(directory)


def copy_beside_weights(directory: Path, root: Path) -> None:
    """Copy what belongs to a model of any family beside its weights and its config.json.

    Args:
        directory: of the weights; if that is in a diffusers pipeline, its autoencoder goes along.
        root: where to.
    """
    if image_kind(directory) or own_kind(directory):
        copy_beside(directory, root)
    if (directory.parent / "model_index.json").is_file() and (directory.parent / "vae").is_dir():
        shutil.copytree(directory.parent / "vae", root / "vae", dirs_exist_ok=True)
    copy_companions(directory, root)


def expand(directory: Path, out: Path) -> int:
    """Write a checkpoint that is coded without loss as its original, group by group, bit for bit.

    Args:
        directory: the coded checkpoint.
        out: directory that does not exist yet; it appears whole or not at all.

    Returns:
        Bytes of the weights.

    Raises:
        InvalidSetting: nothing is coded.
        OutputExists: `out` is there.
        CheckpointError: an array is damaged.
    """
    if out.exists():
        raise OutputExists(f"{out} exists.", "Choose another --out.")
    shards = original_shards(directory)
    if not isinstance(shards, CodedShards):
        raise InvalidSetting(f"{directory.name} is not coded.", "It is open to everybody as it is.")
    check_space(out, shards.nbytes())
    with published(out.absolute()) as root:
        names = _write_original(shards, root)
        copy_beside_weights(directory, root)
        manifest = Manifest.present(directory)
        config = json.loads((directory / "config.json").read_text())
        if manifest is None or not manifest.shapes:
            config = {k: v for k, v in config.items() if k not in ("quantization_config", *GUARD)}
        config.pop(KEY, None)
        write_json(root / "config.json", config)
        if own_kind(root) and in_diffusers_layout(root) and names == [SINGLE]:
            names = [(root / SINGLE).rename(root / DIFFUSERS_MODEL).name]
        if manifest is not None:
            files = {name: file_hash(root / name) for name in names}
            manifest.model_copy(update={"coded": {}, "files": files}).write(root)
    return Shards(out).nbytes()


def _write_original(shards: CodedShards, root: Path) -> list[str]:
    """The tensors of the original in shards of the usual size, and the names of their files."""
    parts = root / "parts"
    parts.mkdir()
    groups = [[name for name, _ in group.tensors()] for group in shards.layout.groups.values()]
    groups = [list(dict.fromkeys(group)) for group in groups]
    coded = {name for group in groups for name in group}
    rest = [name for name in shards.names() if name not in coded]
    places = plan_shards([shards.tensors[name].nbytes for name in rest], REST_BYTES)
    groups += [[rest[i] for i in some] for some in places]
    for index, names in enumerate(groups):
        write_tensors(parts / f"{index:05d}.safetensors", {name: shards.read(name) for name in names})
    names = join_all(parts, root)
    parts.rmdir()
    return names
