"""Weight forms in the files of the models that modicum defines itself, which transformers does not open."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from modicum.errors import CheckpointError
from modicum.formats.manifest import Manifest
from modicum.formats.shards import Shards
from modicum.weights.base import WeightForm, from_spec


def read_forms(manifest: Manifest, shards: Shards) -> dict[str, WeightForm]:
    """Every weight form of a checkpoint by the name of its layer.

    Raises:
        CheckpointError: tensors are missing, or are not what modicum.json says.
    """
    return {name: _read_form(name, spec, shards) for name, spec in manifest.forms().items()}


def dense_tensors(forms: Mapping[str, WeightForm], shards: Shards) -> dict[str, Tensor]:
    """The state dict of a checkpoint with every form decoded."""
    described = tuple(f"{name}." for name in forms)
    tensors = {name: shards.read(name) for name in shards.names() if not name.startswith(described)}
    for name, form in forms.items():
        tensors[f"{name}.weight"] = form.to_dense()
        if form.bias is not None:
            tensors[f"{name}.bias"] = form.bias.data
    return tensors


def _read_form(name: str, spec: Mapping[str, object], shards: Shards) -> WeightForm:
    with torch.device("meta"):
        form = from_spec(spec)
    stored = {key: shards.read(f"{name}.{key}") for key in form.tensors()}
    try:
        form.load_state_dict(stored, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{shards.path}: the tensors of {name} do not have the shapes that modicum.json says.",
            "Copy the checkpoint again.",
        ) from error
    form.check()
    return form
