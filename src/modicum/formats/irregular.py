"""Models whose layers differ in width, heads or experts: what config.json cannot say, found and put back.

A config has one intermediate size and one number of heads for all layers. A structured method leaves layers of
different sizes, and biases where the architecture has none, which the weights themselves show: the difference
between a model and the regular model of its config is a list of parameter shapes and of a few integers (heads per
group, number of experts). `differences` finds both, whatever method made them; `reshape` gives them to a freshly
built model, before its weights are read; `check` holds them against the stored tensors, because modicum.json may be
damaged and a wrong size must not be allocated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from modicum.errors import CheckpointError, UnsupportedModel
from modicum.formats.manifest import Manifest
from modicum.formats.shards import Shards
from modicum.weights.base import WeightForm

FOLLOWING = frozenset({"in_features", "out_features", "max_seq_len_cached"})
"""Integers that follow from the shapes, or that a model changes while it runs."""


def stored_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters (tied ones once) and those buffers that belong into a checkpoint."""
    yield from model.named_parameters()
    kept = model.state_dict(keep_vars=True)
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in kept)


def differences(
    model: nn.Module, regular: nn.Module, forms: dict[str, WeightForm]
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """What of `model` the config does not imply.

    Args:
        model: any transformers model.
        regular: the model of the same config; may be on the meta device.
        forms: layers that are stored in a form, by name.

    Returns:
        Shapes of parameters and buffers, and integers of modules ("model.layers.0.self_attn.num_key_value_groups").

    Raises:
        UnsupportedModel: a parameter of one is missing in the other, or a scale differs that cannot be recorded.
    """
    shapes: dict[str, list[int]] = {}
    for name, tensor in stored_tensors(regular):
        shape = _shape(model, regular, name, forms)
        if shape is not None and shape != list(tensor.shape):
            shapes[name] = shape
    added = {name: list(bias.shape) for name, bias in added_biases(model, regular)}
    shapes |= {name: shape for name, shape in added.items() if name.rpartition(".")[0] not in forms}
    _refuse_extra(model, regular, (*forms, *added))
    return shapes, _attributes(model, regular, forms)


def added_biases(model: nn.Module, regular: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Biases of linear layers that have none in the regular model, by name."""
    for path, twin in regular.named_modules():
        if isinstance(twin, nn.Linear) and twin.bias is None:
            bias = getattr(model.get_submodule(path), "bias", None)
            if isinstance(bias, Tensor):
                yield f"{path}.bias", bias


def _shape(model: nn.Module, regular: nn.Module, name: str, forms: dict[str, WeightForm]) -> list[int] | None:
    path, _, leaf = name.rpartition(".")
    if path in forms:
        size = [forms[path].out_features, forms[path].in_features]
        turned = isinstance(regular.get_submodule(path), Conv1D)
        return None if leaf != "weight" else size[::-1] if turned else size
    return list(tensor_at(model, regular, name).shape)


def tensor_at(model: nn.Module, regular: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of that name, as the module that the architecture has there would hold it.

    Raises:
        UnsupportedModel: the model has none, or no values for it.
    """
    path, _, leaf = name.rpartition(".")
    try:
        module = model.get_submodule(path)
        tensor = getattr(module, leaf)
    except AttributeError:
        module, tensor = None, None
    if not isinstance(tensor, Tensor):
        raise UnsupportedModel(
            f"The config implies {name}, which the model does not have.",
            "Set the counts in model.config (num_hidden_layers, tie_word_embeddings) to what the model is.",
        )
    turned = (
        leaf == "weight" and isinstance(module, nn.Linear) and isinstance(regular.get_submodule(path), Conv1D)
    )
    return tensor.t() if turned else tensor


def _refuse_extra(model: nn.Module, regular: nn.Module, explained: Collection[str]) -> None:
    known = {*regular.state_dict(keep_vars=True), *explained}
    below = tuple(f"{name}." for name in explained)
    extra = [n for n in model.state_dict(keep_vars=True) if n not in known and not n.startswith(below)]
    if extra:
        raise UnsupportedModel(
            f"The model holds {extra[0]}, which its config does not imply ({len(extra)} such tensors).",
            "Set the counts in model.config (num_hidden_layers, num_experts) to what the model is.",
        )


def _attributes(model: nn.Module, regular: nn.Module, forms: Collection[str]) -> dict[str, int]:
    found = {}
    for path, module in regular.named_modules():
        if path in forms:
            continue
        own = vars(model.get_submodule(path))
        if own.get("scaling") != vars(module).get("scaling"):
            raise UnsupportedModel(
                f"{path}.scaling is {own.get('scaling')}, the config implies {vars(module).get('scaling')}.",
                "modicum.json records sizes, not scales: set head_dim in model.config, equal for all layers.",
            )
        for key in _integers(module):
            if type(own.get(key)) is int and own[key] != vars(module)[key]:
                found[f"{path}.{key}" if path else key] = own[key]
    return found


def _integers(module: nn.Module) -> list[str]:
    return [
        key
        for key, value in vars(module).items()
        if type(value) is int and not key.startswith("_") and key not in FOLLOWING
    ]


def located(manifest: Manifest, model: Any) -> Manifest:
    """The manifest with the names that `model` uses: a base model without its head has no prefix before them."""
    prefix = f"{model.base_model_prefix}."
    tables = {key: getattr(manifest, key) for key in ("layers", "shapes", "attributes")}
    prefixed = any(name.startswith(prefix) for table in tables.values() for name in table)
    if hasattr(model, model.base_model_prefix) or not prefixed:
        return manifest
    inside = {
        key: {name.removeprefix(prefix): value for name, value in table.items() if name.startswith(prefix)}
        for key, table in tables.items()
    }
    return manifest.model_copy(update=inside)


def reshape(model: nn.Module, manifest: Manifest) -> None:
    """Give the parameters listed in the manifest their own shapes, and modules the integers that go with them.

    Raises:
        CheckpointError: the manifest names a parameter or an attribute that the model does not have, a size that
            is none, or integers that do not go with the shapes.
    """
    coupled = [(name, module) for name, module in model.named_modules() if _agrees(module)]
    for name, shape in manifest.shapes.items():
        _set_shape(model, name, shape)
    for name, value in manifest.attributes.items():
        path, _, leaf = name.rpartition(".")
        module = submodule(model, path)
        if type(getattr(module, leaf, None)) is not int:
            raise CheckpointError(f"modicum.json sets {name}, which is not an integer of the model.")
        if value < 0:
            raise CheckpointError(f"modicum.json sets {name} to {value}; it cannot be negative.")
        setattr(module, leaf, value)
    for name, module in coupled:
        if not _agrees(module):
            raise CheckpointError(
                f"modicum.json gives {name} weights that do not go with its number of heads or experts."
            )


def _set_shape(model: nn.Module, name: str, shape: list[int]) -> None:
    path, _, leaf = name.rpartition(".")
    module = submodule(model, path)
    old = getattr(module, leaf, None)
    if old is None and leaf == "bias" and isinstance(module, nn.Linear):
        old = nn.Parameter(module.weight.detach()[:, 0], module.weight.requires_grad)
    if not isinstance(old, Tensor):
        raise CheckpointError(f"modicum.json gives a shape for {name}, which the model does not have.")
    if len(shape) != old.dim() or any(size < 0 for size in shape):
        raise CheckpointError(
            f"modicum.json gives {name} the shape {shape}; the model has {list(old.shape)}."
        )
    try:
        empty = torch.empty(shape, dtype=old.dtype, device="meta" if old.is_meta else old.device)
    except RuntimeError as error:
        raise CheckpointError(f"modicum.json gives {name} the impossible shape {shape}.") from error
    is_parameter = isinstance(old, nn.Parameter)
    setattr(module, leaf, nn.Parameter(empty, old.requires_grad) if is_parameter else empty)
    if isinstance(module, nn.Linear) and leaf == "weight":
        module.out_features, module.in_features = shape


def _agrees(module: nn.Module) -> bool:
    """Whether the integers of an attention, a router or fused experts fit their weights; False for other modules."""
    groups, q, k = (getattr(module, name, None) for name in ("num_key_value_groups", "q_proj", "k_proj"))
    if isinstance(groups, int) and isinstance(q, nn.Linear) and isinstance(k, nn.Linear):
        return q.out_features == groups * k.out_features
    count = getattr(module, "num_experts", None)
    first = getattr(module, "gate_up_proj", getattr(module, "weight", None))
    return isinstance(first, Tensor) and isinstance(count, int) and first.shape[0] == count


def check(model: nn.Module, manifest: Manifest, shards: Shards) -> None:
    """Compare every tensor that modicum.json describes with the stored ones, before anything is allocated.

    Args:
        model: with its shapes and forms in place, on the meta device.
        manifest: modicum.json.
        shards: the stored tensors.

    Raises:
        CheckpointError: the first tensor whose stored shape differs, or that is larger than the whole checkpoint.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    described = tuple(f"{name}." for name in manifest.forms())
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in manifest.shapes and not name.startswith(described):
            continue
        names = (name, prefix + name, name.removeprefix(prefix))
        found = next((shards.tensors[n] for n in names if n in shards), None)
        fits = tensor.numel() <= shards.nbytes() if found is None else found.shape == tuple(tensor.shape)
        if not fits:
            stored = f"the file holds {list(found.shape)}" if found else "the files are smaller than that"
            raise CheckpointError(
                f"{name}: modicum.json says {list(tensor.shape)}, {stored}.", "Copy the checkpoint again."
            )


def submodule(model: nn.Module, path: str) -> Any:
    """The module at `path`.

    Raises:
        CheckpointError: the model has none there.
    """
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise CheckpointError(
            f"modicum.json names {path}, which the model of config.json does not have."
        ) from error
