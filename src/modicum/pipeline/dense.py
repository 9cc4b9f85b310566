"""What a storage step reads: a dense checkpoint of any family, and which of its tensors are coded together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from modicum.errors import CheckpointError
from modicum.formats.coded_layout import DTYPES, CodedGroup, CodedWeight
from modicum.formats.manifest import Manifest
from modicum.formats.shards import Shards
from modicum.method import StorageMethod
from modicum.models import Anatomy, CheckpointMap
from modicum.models.cifar_resnet import CifarResNetForImageClassification, is_cifar_resnet
from modicum.models.cifar_resnet.files import read_config
from modicum.models.class_models import (
    class_config,
    class_kind,
    empty_class_model,
    in_diffusers_layout,
    network_of,
)
from modicum.models.dit.diffusers_layout import DiffusersMap
from modicum.pipeline.source import Source, stored_dtype
from modicum.weights.base import dtype_name


def dense_source(directory: Path) -> Source:
    """A checkpoint whose weights can be coded, whatever family of models it belongs to.

    Raises:
        CheckpointError: files are missing or damaged, disagree with each other, or hold compressed weights.
        UnsupportedModel: the architecture has no description.
    """
    if class_kind(directory):
        network = network_of(directory)
        shards = Shards(network)
        model = empty_class_model(network, stored_dtype(class_config(network), shards))
        kind = DiffusersMap if in_diffusers_layout(network) else CheckpointMap
        return _own_source(network, shards, model, kind)
    if is_cifar_resnet(directory):
        resnet = CifarResNetForImageClassification(read_config(directory))
        return _own_source(directory, Shards(directory), resnet, CheckpointMap)
    return Source.open(directory)


def _own_source(directory: Path, shards: Shards, model: nn.Module, kind: type[CheckpointMap]) -> Source:
    """The checkpoint of a model that modicum defines and that is one state dict."""
    manifest = Manifest.present(directory)
    if manifest is not None and (manifest.forms() or manifest.coded):
        raise CheckpointError(
            f"{directory} is compressed already.", "Compress the original, with all steps in one recipe."
        )
    anatomy = Anatomy.of(model)
    names = kind(shards.names(), model, anatomy.family)
    names.check({name: at.shape for name, at in shards.tensors.items()})
    return Source(directory, shards, model, anatomy, names, torch.device("cpu"))


def coded_groups(source: Source, step: StorageMethod) -> dict[str, CodedGroup]:
    """All groups of a step whose weights have one dtype that can be coded, whether they will shrink or not."""
    groups = {}
    shapes = {name: tuple(p.shape) for name, p in source.model.named_parameters(remove_duplicate=False)}
    for name, parameters in step.groups(source.anatomy).items():
        parts = {parameter: source.names.sources(parameter) for parameter in parameters}
        dtypes = {source.shards.tensors[part.name].dtype for some in parts.values() for part in some}
        if len(dtypes) == 1 and (dtype := dtype_name(next(iter(dtypes)))) in DTYPES:
            weights = tuple(
                CodedWeight(
                    name=parameter,
                    shape=shapes[parameter],
                    tensors=tuple((part.name, source.shards.tensors[part.name].shape) for part in some),
                )
                for parameter, some in parts.items()
            )
            groups[name] = CodedGroup(dtype=dtype, weights=weights)
    return groups


def copies_of(coded: Iterable[str], source: Source) -> dict[str, str]:
    """Tensors that the model does not need and that have exactly the bits of a coded one.

    A tied head may be stored beside the embedding, and diffusers repeats the embedders of a DiT in every block.

    Args:
        coded: names of the coded tensors.
        source: the checkpoint.

    Returns:
        The name of a copy, and which coded tensor it equals.
    """
    shards, coded = source.shards, sorted(coded)
    needed = {part.name for name in source.names.needed() for part in source.names.sources(name)}
    spare = [name for name in sorted(shards.names()) if name not in needed]
    alike = {_kind(shards, name) for name in coded} & {_kind(shards, name) for name in spare}
    originals = {_digest(shards.read(name)): name for name in coded if _kind(shards, name) in alike}
    found = {n: originals.get(_digest(shards.read(n))) for n in spare if _kind(shards, n) in alike}
    return {name: original for name, original in found.items() if original is not None}


def _kind(shards: Shards, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
    return shards.tensors[name].dtype, shards.tensors[name].shape


def _digest(tensor: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    bits = tensor.reshape(-1).view(torch.uint8).numpy().data
    return tensor.dtype, tensor.shape, hashlib.blake2b(bits, digest_size=32).digest()
