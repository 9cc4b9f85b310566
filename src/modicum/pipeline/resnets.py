"""Open a ResNet for CIFAR, as it is or coded without loss."""

from __future__ import annotations

from pathlib import Path

from modicum.formats.coded import CodedShards
from modicum.formats.coded_models import opened, runs
from modicum.formats.dfloat11 import open_shards
from modicum.models.cifar_resnet import CifarResNetForImageClassification, load_cifar_resnet


def load_resnet(directory: Path, device: str = "cpu") -> CifarResNetForImageClassification:
    """A ResNet for CIFAR in float32 and evaluation mode.

    Raises:
        CheckpointError: files are missing, damaged, or do not fit together.
    """
    shards = open_shards(directory)
    if runs(shards):
        return opened(
            shards,
            lambda tensors, prepare: load_cifar_resnet(
                directory, device=device, tensors=tensors, prepare=prepare
            ),
        )
    if isinstance(shards, CodedShards):
        tensors = {name: shards.read(name) for name in shards.names()}
        return load_cifar_resnet(directory, device=device, tensors=tensors)
    return load_cifar_resnet(directory, device=device)
