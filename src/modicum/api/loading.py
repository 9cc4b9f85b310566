"""Open any model, save any model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from modicum.errors import InvalidSetting
from modicum.models.cifar_resnet import is_cifar_resnet
from modicum.models.class_models import class_kind
from modicum.models.image_models import image_kind
from modicum.pipeline.classes import load_classes
from modicum.pipeline.images import load_images
from modicum.pipeline.loading import load_model
from modicum.pipeline.resnets import load_resnet
from modicum.pipeline.run import check_device
from modicum.pipeline.saving import save_model
from modicum.zoo.locate import locate

save = save_model


def load(
    model: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    text_encoder: str | Path | None = None,
    sparse_kernels: bool = False,
    offload: bool = False,
    prefetch: bool = False,
) -> nn.Module:
    """Open a model: a directory, a nano model's name, or a hub id. Integer weights stay packed.

    2:4 layers become dense, which was faster wherever it was measured. With `sparse_kernels`, those of a language model
    in float16 or bfloat16 stay 2:4 on a GPU with sparse tensor cores, in 9/16 of the memory. `model.sparse_products`
    says which did, and why the other N:M layers are dense.

    Args:
        model: what to open: a language model, one that draws images (VAR, Infinity, DiT, SiT, MAR), or a
            ResNet for CIFAR (float32).
        dtype: compute dtype; by default that of the checkpoint, and float32 for models that draw.
        device: where it goes.
        text_encoder: directory of flan-t5-xl, for an Infinity that is to read prompts.
        sparse_kernels: let 2:4 layers stay 2:4 where the kernels of the device take them; they cannot be trained.
        offload: keep the codes of a DFloat11 language model in the memory of the host, and send them to the GPU block
            by block.
        prefetch: decode the next block of such a model beside the computation, on a GPU. Products may then round
            otherwise from run to run (see `modicum.weights.lanes`).

    Raises:
        InvalidSetting: a text encoder for a model that takes none.
        CheckpointError: the files are missing, corrupt, or do not fit together.
    """
    check_device(device)
    directory = locate(model)
    kind = image_kind(directory)
    if text_encoder is not None and kind != "infinity":
        raise InvalidSetting(
            f"{directory.name} reads text without a separate encoder, or none at all.",
            "Leave the text encoder out.",
        )
    if class_kind(directory):
        return load_classes(directory, dtype, device)
    if kind is not None:
        return load_images(directory, kind, dtype, device, text_encoder)
    if is_cifar_resnet(directory):
        return load_resnet(directory, device)
    return load_model(
        directory, dtype, device, sparse_kernels=sparse_kernels, offload=offload, prefetch=prefetch
    )
