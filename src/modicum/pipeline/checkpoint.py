"""From finished blocks to a directory that transformers opens, and back.

Three formats. `plain`: every weight dense under its original name, zeros included; opens everywhere.
`compressed-tensors`: packed integers, opened by transformers and vLLM. `modicum`: every form as it is, the smallest;
opened by `from_pretrained` after `import modicum`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from modicum.formats.compressed_tensors import quantization_config
from modicum.formats.experts import stored_under
from modicum.formats.manifest import Manifest
from modicum.formats.merge import join_all
from modicum.formats.native import config_entries
from modicum.formats.shards import write_json
from modicum.models import Block, CheckpointMap, Layer
from modicum.models.image_models import image_kind
from modicum.pipeline.images import copy_beside
from modicum.pipeline.plan import Format, Plan, integer_schemes
from modicum.pipeline.promises import in_words
from modicum.pipeline.source import Source
from modicum.pipeline.workspace import Workspace
from modicum.version import __version__
from modicum.weights.base import WeightForm
from modicum.weights.dense import DenseWeight

COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)


def block_tensors(
    block: Block, forms: Mapping[str, WeightForm], names: CheckpointMap, form: Format
) -> dict[str, Tensor]:
    """The tensors of a finished block under their names on disk.

    Args:
        block: the block; its module holds the compressed values.
        forms: form of every touched layer.
        names: the names that the original uses.
        form: the storage format.
    """
    stored = {} if form == "plain" else dict(forms)
    stored |= _whole_experts(block, stored)
    covered: set[str] = set()
    tensors: dict[str, Tensor] = {}
    for layer in block.layers:
        if layer.name in stored:
            covered.update(layer.parameter_names)
            under, form_tensors = stored_under(layer), stored[layer.name].tensors()
            tensors |= {f"{under}.{key}": value for key, value in form_tensors.items()}
    parameters = {**dict(block.module.named_parameters()), **dict(block.module.named_buffers())}
    for name in names.needed(block.name):
        if name not in covered:
            tensors |= names.split(name, parameters[name.removeprefix(f"{block.name}.")])
    return tensors


def _whole_experts(block: Block, stored: Mapping[str, WeightForm]) -> dict[str, WeightForm]:
    """Dense forms for untouched slices of a fused tensor of which another slice is stored as a form."""
    layers = block.experts.layers if block.experts else ()
    if not any(layer.name in stored for layer in layers):
        return {}
    return {
        layer.name: DenseWeight.from_dense(layer.weight.detach().contiguous())
        for layer in layers
        if layer.name not in stored
    }


def form_specs(block: Block, forms: Mapping[str, WeightForm], form: Format) -> dict[str, dict[str, Any]]:
    """The specification of every form of a block that the checkpoint stores as a form."""
    if form == "plain":
        return {}
    return {name: f.spec() for name, f in {**forms, **_whole_experts(block, forms)}.items()}


def finish(workspace: Workspace, source: Source, plan: Plan, header: dict[str, Any]) -> Manifest:
    """Write everything beside the blocks, join the shards, and give the directory its name.

    May be interrupted and called again.

    Args:
        workspace: with all blocks finished.
        source: the original checkpoint.
        plan: of this run.
        header: `recipe` and `source` of the manifest.
    """
    records: dict[str, Any] = {}
    for index in range(plan.blocks):
        records |= workspace.records(index)
    root = workspace.root
    if image_kind(source.directory):
        copy_beside(source.directory, root)
    else:
        copy_companions(source.directory, root)
    write_json(root / "config.json", output_config(source, plan))
    if not (root / "shards.json").exists() and not list(root.glob("model*.safetensors")):
        workspace.write_rest({name: source.read(name) for name in _outside_tensors(source)}, plan.blocks)
    shards = join_all(workspace.blocks, root)
    manifest = Manifest(
        **header,
        versions={
            "modicum": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        layers={**_untouched(source, plan), **records},
        shapes=source.irregular.shapes if source.irregular else {},
        attributes=source.irregular.attributes if source.irregular else {},
        promises={
            **(source.made.promises if source.made else {}),
            **in_words({name: live[-1] for name, live in plan.live.items()}),
        },
        files={name: file_hash(root / name) for name in shards},
    )
    manifest.write(root)
    workspace.publish()
    return manifest


def _untouched(source: Source, plan: Plan) -> dict[str, Any]:
    """Records of layers that an earlier run changed and this one leaves alone."""
    known = source.made.layers if source.made else {}
    return {name: record for name, record in known.items() if name not in plan.live}


def _outside_tensors(source: Source) -> list[str]:
    """Checkpoint names of what belongs to no block, each once; a tied copy on disk is not repeated."""
    return sorted({part.name for name in source.outside() for part in source.names.sources(name)})


def copy_companions(directory: Path, root: Path) -> None:
    """Copy the tokenizer and the other files that belong to a language model."""
    for name in COMPANIONS:
        if (directory / name).is_file():
            shutil.copyfile(directory / name, root / name)


def output_config(source: Source, plan: Plan) -> dict[str, Any]:
    """config.json of the result: the original's, the dtype that was computed in, and the quantizer's entry."""
    config: dict[str, Any] = json.loads((source.directory / "config.json").read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = plan.dtype
    if plan.format == "compressed-tensors":
        linears = [name for name, m in source.model.named_modules() if isinstance(m, nn.Linear)]
        schemes = integer_schemes({p.name: p.form for p in plan.layers})
        config["quantization_config"] = quantization_config(linears, schemes)
    elif plan.format == "modicum" or source.irregular is not None:
        config |= config_entries()
    return config


def file_hash(file: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def restore_block(workspace: Workspace, block: Block, names: CheckpointMap, form: Format) -> None:
    """Put the finished weights of a block back into the model, so that a resumed run computes what the first did.

    The block must hold its original weights; what the run changed is overwritten.
    """
    shards, records = workspace.read_block(block.index)
    specs = {name: record["form"] for name, record in records.items() if record.get("form")}
    for layer in block.layers:
        if layer.name in specs:
            _restore_form(layer, specs[layer.name], shards)
    parameters = {**dict(block.module.named_parameters()), **dict(block.module.named_buffers())}
    for name in names.needed(block.name):
        sources = names.sources(name)
        if all(part.name in shards for part in sources):
            value = names.assemble(name, {part.name: shards.read(part.name) for part in sources})
            with torch.no_grad():
                parameters[name.removeprefix(f"{block.name}.")].copy_(value)


def _restore_form(layer: Layer, spec: dict[str, Any], shards: Any) -> None:
    from modicum.weights.base import from_spec

    form = from_spec(spec)
    wanted: Iterable[str] = form.tensors()
    form.load_state_dict({key: shards.read(f"{stored_under(layer)}.{key}") for key in wanted}, assign=True)
    form.check()
    layer.set_weight(form.to_dense(), form.bias)
