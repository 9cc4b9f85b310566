"""Next-scale image models in the pipeline: what is compressed is their transformer, which is most of them.

The directory of such a model holds the transformer in model.safetensors and what turns token maps into pixels in
vae.safetensors. A run reads and writes the first, block by block, and copies everything beside it. Compressed weights
are stored as plain tensors or in modicum's own format; only `modicum.load` reads such models, so no other format has a
reader.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import nn

from modicum.errors import CheckpointError
from modicum.formats.coded_models import opened, runs
from modicum.formats.dfloat11 import open_shards
from modicum.formats.manifest import Manifest
from modicum.formats.shards import Shards
from modicum.formats.stored_forms import dense_tensors, read_forms
from modicum.models.image_models import Kind, load_image_model, transformer_of
from modicum.models.next_scale import NextScaleModel


def image_skeleton(directory: Path, kind: Kind, dtype: torch.dtype) -> nn.Module:
    """The transformer of an image model without weights, in evaluation mode.

    Args:
        directory: of the model.
        kind: of `image_kind`.
        dtype: of the parameters.

    Raises:
        CheckpointError: it is compressed already.
    """
    manifest = Manifest.present(directory)
    if manifest is not None and (manifest.forms() or manifest.coded):
        raise CheckpointError(
            f"{directory} is compressed already.", "Compress the original, with all steps in one recipe."
        )
    with torch.device("meta"):
        model = transformer_of(directory, kind).to(dtype)
    for module in model.modules():  # buffers are in no file, and blocks do not read their values
        for name, buffer in list(module.named_buffers(recurse=False)):
            empty = torch.zeros(buffer.shape, dtype=buffer.dtype)
            module.register_buffer(name, empty, persistent=False)
    return model.eval()


def load_images(
    directory: Path,
    kind: Kind,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    text_encoder: str | Path | None = None,
) -> NextScaleModel:
    """An image model, compressed or not, in evaluation mode; integer weights stay packed, codes stay codes.

    Args:
        directory: as modicum writes it.
        kind: of `image_kind`.
        dtype: of the transformer; float32 by default.
        device: where it goes.
        text_encoder: directory of the text encoder, for a model that reads prompts.

    Raises:
        CheckpointError: files are missing, corrupt, or do not fit together.
    """
    manifest = Manifest.present(directory)
    if manifest is None:
        return load_image_model(directory, kind, dtype, device, text_encoder)
    shards = open_shards(directory)
    if runs(shards):
        return opened(
            shards, lambda *given: load_image_model(directory, kind, dtype, device, text_encoder, *given)
        )
    forms = read_forms(manifest, shards)
    model = load_image_model(directory, kind, dtype, device, text_encoder, dense_tensors(forms, shards))
    for name, form in forms.items():
        if not form.expand_on_load:
            model.get_submodule("transformer").set_submodule(name, form.to(device, dtype or torch.float32))
    return model


def copy_beside(directory: Path, root: Path) -> None:
    """Copy what draws and reads beside the transformer; not the card, whose figures are those of the original."""
    weights = {at.file.name for at in Shards(directory).tensors.values()}
    for found in directory.iterdir():
        if found.is_dir():
            shutil.copytree(found, root / found.name, dirs_exist_ok=True)
        elif found.suffix == ".safetensors" and found.name not in weights:
            shutil.copyfile(found, root / found.name)
