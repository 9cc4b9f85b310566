"""Models that are read, changed and written as a whole: those of transformers, DiT, SiT, MAR, and ResNets for CIFAR.

A step that trains needs float32 weights whatever is stored, so that is what is loaded; what is written has the dtype
that the original has on disk. A weight that no step touched goes through unchanged, bit for bit.

Pruned weights that are stored without their zeros are whole matrices once they are loaded, and become small again when
they are written. Integers and codes have no gradient, so models that hold them are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modicum.errors import CheckpointError
from modicum.formats.manifest import Manifest
from modicum.formats.shards import Shards
from modicum.models import Anatomy
from modicum.models.cifar_resnet import (
    CifarResNetConfig,
    CifarResNetForImageClassification,
    load_cifar_resnet,
)
from modicum.models.cifar_resnet import save as save_cifar_resnet
from modicum.models.class_models import ClassModel, class_kind, save_class_model
from modicum.pipeline.checkpoint import file_hash
from modicum.pipeline.classes import load_classes
from modicum.pipeline.loading import load_model, refuse_images
from modicum.pipeline.promises import recorded
from modicum.pipeline.saving import save_model
from modicum.pipeline.source import stored_dtype
from modicum.weights.base import FORMS, WeightForm
from modicum.weights.masked import MaskedWeight
from modicum.weights.properties import IntegerGrid, NMPattern, Property, ZeroMask
from modicum.weights.semi_structured import SemiStructuredWeight


def model_type(directory: Path) -> str | None:
    """The `model_type` of config.json; None if there is none to read."""
    try:
        return str(json.loads((directory / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def open_whole(directory: Path, device: str = "cpu") -> Any:
    """The model of a directory in float32 and evaluation mode.

    Raises:
        CheckpointError: files are missing or damaged.
        UnsupportedModel: a next-scale model, whose pixels lie in other files.
    """
    if class_kind(directory):
        return load_classes(directory, device=device)
    if model_type(directory) == CifarResNetConfig.model_type:
        return load_cifar_resnet(directory, device=device)
    refuse_images(
        directory, "A step over the whole model", "Open it with modicum.load and change it in memory."
    )
    return load_model(directory, torch.float32, device)


def refuse_untrainable(directory: Path) -> None:
    """Refuse a model whose weights a step over the whole of it cannot change: not matrices, or on a grid.

    Raises:
        CheckpointError: they are integers or codes.
    """
    manifest = Manifest.present(directory)
    forms = manifest.forms().values() if manifest is not None else ()
    kinds = {str(form.get("kind")) for form in forms}
    packed = sorted(kind for kind in kinds if kind not in FORMS or not FORMS[kind].expand_on_load)
    packed += sorted(
        {p.name for held in recorded(manifest).values() for p in held if isinstance(p, IntegerGrid)}
    )
    if packed:
        raise CheckpointError(
            f"{directory} holds quantized weights ({', '.join(packed)}), which no such step can change.",
            "Prune and recover the model before it is quantized; all can stand in one recipe.",
        )
    if manifest is not None and manifest.coded:
        raise CheckpointError(
            f"{directory} holds weights that are coded without loss, which no such step can change.",
            f"Write them out first: modicum export {directory} --plain --out DIRECTORY",
        )


def write_whole(model: Any, directory: Path, original: Path, manifest: Manifest, small: bool = False) -> None:
    """Write a model of `open_whole` where nothing is yet, with modicum.json.

    Args:
        model: to write; it is cast to the dtype of the original.
        directory: appears whole or not at all.
        original: directory whose tokenizer goes along.
        manifest: what is known of its making; its records of pruned layers are brought up to date.
        small: store pruned layers without their zeros.
    """
    shards = Shards(original)
    if isinstance(model, CifarResNetForImageClassification):
        save_cifar_resnet(model, directory)
    elif isinstance(model, ClassModel):
        dtype = stored_dtype(model.config, shards)
        manifest = _pruned_again(model, manifest, dtype, small)
        save_class_model(model, directory, half=dtype == torch.bfloat16)
    else:
        model = model.to("cpu", stored_dtype(None, shards))
        manifest = _pruned_again(model, manifest, model.dtype, small)
        save_model(model, directory, original, manifest=manifest)
        return
    written = manifest.model_copy(update={"files": _hashes(directory)})
    written.write(directory)


def _pruned_again(model: Any, manifest: Manifest, dtype: torch.dtype, small: bool) -> Manifest:
    """The records of all layers of which zeros are promised, which take their stored forms if they are to be small."""
    promised = recorded(manifest)
    if not promised:
        return manifest
    records = dict(manifest.layers)
    for layer in Anatomy.of(model).layers():
        if layer.name in promised:
            weight = layer.weight.detach().to("cpu", dtype)
            # What code around it reads itself, convolutions and slices of expert tensors, stays a matrix.
            form = form_of(weight, layer.bias, promised[layer.name]) if small and layer.swappable else None
            records[layer.name] = _record(records.get(layer.name, {}), weight, form)
            if form is not None:
                layer.replace(form)
    return manifest.model_copy(update={"layers": records})


def form_of(weight: Tensor, bias: Tensor | None, promises: frozenset[Property]) -> WeightForm | None:
    """The form that stores a matrix [out, in] with what is promised of it; None if no zeros are."""
    bias = None if bias is None else bias.detach().to(weight)
    for promise in promises:
        if isinstance(promise, NMPattern):
            return SemiStructuredWeight.from_dense(weight, promise.n, promise.m, bias=bias)
    return MaskedWeight.from_dense(weight, bias=bias) if ZeroMask() in promises else None


def _record(known: Mapping[str, Any], weight: Tensor, form: WeightForm | None) -> dict[str, Any]:
    """What modicum.json says of a layer that was pruned and then trained: no longer how far it is from the original."""
    size, nbytes = weight.numel(), weight.nbytes if form is None else form.nbytes
    return {
        **{key: value for key, value in known.items() if key not in ("weight_error", "output_error")},
        "form": None if form is None else form.spec(),
        "nbytes": nbytes,
        "dense_nbytes": weight.nbytes,
        "sparsity": round(1 - int(weight.count_nonzero()) / size, 6),
        "bits_per_weight": round(8 * nbytes / size, 4),
    }


def _hashes(directory: Path) -> dict[str, str]:
    return {file.name: file_hash(file) for file in sorted(directory.glob("*.safetensors"))}
