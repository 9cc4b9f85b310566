"""DiT, SiT and MAR with compressed layers: opened, swept in memory, and written.

These models fit into memory whole, so their layers are compressed there, block by block, calibrated on what they are
asked in training: noisy pictures at all steps. What only saves bytes on disk is dense again after loading; packed
integers stay packed, codes stay codes. Only `modicum.load` opens such directories, so no other format has a reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from modicum.data.samples import Samples
from modicum.errors import InvalidSetting
from modicum.formats.coded_models import opened, runs
from modicum.formats.dfloat11 import is_published
from modicum.formats.manifest import Manifest
from modicum.formats.shards import Shards
from modicum.formats.stored_forms import dense_tensors, read_forms
from modicum.models import Anatomy
from modicum.models.class_models import ClassModel, load_class_model, network_of, save_class_model
from modicum.pipeline.checkpoint import file_hash
from modicum.pipeline.coded import original_shards
from modicum.pipeline.memory_run import sweep_model
from modicum.pipeline.plan import Format, integer_schemes, layer_steps
from modicum.pipeline.promises import in_words, promised_by, recorded
from modicum.pipeline.recipe import Recipe
from modicum.pipeline.run import Progress
from modicum.pipeline.source import stored_dtype
from modicum.trainer.objectives import objective_of
from modicum.trainer.questions import passes
from modicum.weights.base import WeightForm

Records = dict[str, dict[str, Any]]


def load_classes(directory: Path, dtype: torch.dtype | None = None, device: str = "cpu") -> ClassModel:
    """A model that draws classes, compressed or not, in evaluation mode.

    Args:
        directory: as modicum or diffusers writes it.
        dtype: of the parameters; float32 by default.
        device: where it goes.

    Raises:
        CheckpointError: files are missing, corrupt, or do not fit together.
    """
    dtype = dtype or torch.float32
    manifest = Manifest.present(directory) or Manifest()
    if not (manifest.forms() or manifest.coded or is_published(directory)):
        return load_class_model(directory, dtype, device)
    shards = original_shards(directory)
    if runs(shards):
        return opened(shards, lambda *given: load_class_model(directory, dtype, device, *given))
    forms = read_forms(manifest, shards)
    model = load_class_model(directory, dtype, device, dense_tensors(forms, shards))
    for name, form in forms.items():
        if not form.expand_on_load:
            model.set_submodule(name, form.to(device, dtype))
    return model


def check_format(wanted: Format) -> None:
    """Refuse a format that these models cannot be stored in.

    Raises:
        InvalidSetting: compressed-tensors.
    """
    if wanted == "compressed-tensors":
        raise InvalidSetting(
            "compressed-tensors is for models that transformers opens; this one is modicum's own.",
            "Use --format modicum, or plain.",
        )


def compress_classes(
    directory: Path,
    out: Path,
    recipe: Recipe,
    data: Samples | None,
    wanted: Format,
    device: str,
    progress: Progress,
) -> Manifest:
    """Compress the layers of a model and write the result.

    Args:
        directory: of the model, with its modicum.json.
        out: directory that does not exist yet; it appears whole or not at all.
        recipe: layer steps; its `calibration.samples` says how many samples they are calibrated on.
        data: training samples, if a step needs them.
        wanted: storage format.
        device: where to work.
        progress: who to tell.

    Raises:
        UnusableData: a step needs data and there is none.
    """
    model = load_class_model(directory, device=device)
    forms: dict[str, WeightForm] = {}
    asked = None
    if data is not None:
        asked = passes(model, objective_of(model), data, recipe.calibration.samples, recipe.seed)
    made = Manifest.read(directory)
    start, layers = recorded(made), list(Anatomy.of(model).layers())
    promised = promised_by(layer_steps(recipe), layers, start)
    records = sweep_model(
        model, recipe, asked, progress, lambda layer, form: forms.update({layer.name: form}), start
    )
    half = stored_dtype(model.config, Shards(network_of(directory))) == torch.bfloat16
    if wanted == "plain" or (wanted == "auto" and not integer_schemes(forms)):
        forms = {}
    for name, form in forms.items():
        model.set_submodule(name, form.to(torch.bfloat16) if half else form)
    save_class_model(model, out, half=half)
    files = {file.name: file_hash(file) for file in sorted(out.glob("*.safetensors"))}
    manifest = made.model_copy(
        update={
            "layers": {**made.layers, **_layers(records, forms, half)},
            "promises": {**made.promises, **in_words(promised)},
            "files": files,
        }
    )
    manifest.write(out)
    return manifest


def _layers(records: Records, forms: Mapping[str, WeightForm], half: bool) -> Records:
    """The records of all layers as they are stored, of which the sweep saw float32."""
    return {name: _stored(record, forms.get(name), half) for name, record in records.items()}


def _stored(record: dict[str, Any], form: WeightForm | None, half: bool) -> dict[str, Any]:
    dense = record["dense_nbytes"] // (2 if half else 1)
    size = dense * 8 // (16 if half else 32)
    nbytes = dense if form is None else form.nbytes
    spec = None if form is None else form.spec()
    bits = round(8 * nbytes / size, 4)
    return {"form": spec, **record, "dense_nbytes": dense, "nbytes": nbytes, "bits_per_weight": bits}
