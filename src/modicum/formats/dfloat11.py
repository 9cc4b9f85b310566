"""The published layout of DFloat11 checkpoints, written and read.

config.json says which modules are coded, by regular expressions that match their whole names, and which of their
submodules hold the weights of a group, in order; an empty list stands for the module itself:

    "dfloat11_config": {"version": "0.5.0", "threads_per_block": [512], "bytes_per_thread": 8,
                        "pattern_dict": {"lm_head": [], "model\\.layers\\.\\d+": ["self_attn.q_proj", ...]}}

The arrays of a group lie under the name of its module, every other tensor as it was, in any number of files.

    70% Size, 100% Accuracy: Lossless LLM Compression via Dynamic-Length Float (NeurIPS 2025, arXiv 2504.11651)

What the layout has no place for (float16 and float32, fused experts, layers that are no nn.Linear) is described in
modicum.json alone; such a checkpoint gets no `dfloat11_config`.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from modicum.errors import CheckpointError
from modicum.formats.coded import CodedShards
from modicum.formats.coded_layout import AGAIN, CodedGroup, CodedWeight, Layout
from modicum.formats.manifest import Manifest
from modicum.formats.shards import Shards, read_header

KEY = "dfloat11_config"
VERSION = "0.5.0"
THREADS, BYTES = [512], 8
SIGN = ".encoded_exponent"


def published_config(layout: Layout, model: nn.Module) -> dict[str, Any]:
    """What config.json says of a layout; empty if it cannot be said there.

    Args:
        layout: of the groups.
        model: that they belong to; only its modules are looked at.
    """
    if layout.method != "lossless.dfloat11" or not all(
        _expressible(name, group, model) for name, group in layout.groups.items()
    ):
        return {}
    by_pattern: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for name, group in layout.groups.items():
        by_pattern[_pattern(name)][name] = _paths(name, group)
    patterns: dict[str, list[str]] = {}
    for pattern, members in by_pattern.items():
        alike = len({tuple(paths) for paths in members.values()}) == 1
        single = {re.escape(name): paths for name, paths in members.items()}
        patterns |= {pattern: next(iter(members.values()))} if alike else single
    return {
        KEY: {
            "version": VERSION,
            "threads_per_block": THREADS,
            "bytes_per_thread": BYTES,
            "pattern_dict": patterns,
        }
    }


def _expressible(name: str, group: CodedGroup, model: nn.Module) -> bool:
    owners = [model.get_submodule(weight.name.removesuffix(".weight")) for weight in group.weights
              if weight.name.endswith(".weight")]  # fmt: skip
    kinds = nn.Linear | nn.Embedding if _paths(name, group) == [] else nn.Linear
    same = all(len(weight.tensors) == 1 and weight.tensors[0][0] == weight.name for weight in group.weights)
    linear = len(owners) == len(group.weights) and all(isinstance(owner, kinds) for owner in owners)
    return group.dtype == "bfloat16" and same and linear


def _pattern(name: str) -> str:
    """The regular expression of a module and of those that differ from it in numbers."""
    return r"\.".join(r"\d+" if part.isdecimal() else re.escape(part) for part in name.split("."))


def _paths(name: str, group: CodedGroup) -> list[str]:
    """The submodules of a group relative to its module; none for the module itself."""
    paths = [weight.name.removesuffix(".weight").removeprefix(f"{name}.") for weight in group.weights]
    return [] if paths == [name] else paths


def is_published(directory: Path) -> bool:
    """Whether a directory holds a DFloat11 checkpoint that modicum did not write."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and KEY in config and Manifest.present(directory) is None


def read_published(directory: Path, model: nn.Module) -> CodedShards:
    """The tensors of a published checkpoint.

    Args:
        directory: with config.json and any number of safetensors files.
        model: of config.json, for the shapes; parameters may be on the meta device.

    Raises:
        CheckpointError: config.json or the files are damaged, of another version, or do not fit together.
    """
    patterns = _patterns(directory)
    names = [name for file in sorted(directory.glob("*.safetensors")) for name in read_header(file)]
    coded = [name.removesuffix(SIGN) for name in names if name.endswith(SIGN)]
    groups = {name: _group(directory, name, patterns, model) for name in coded}
    return CodedShards(directory, Layout(method="lossless.dfloat11", groups=groups), every=True)


def _patterns(directory: Path) -> dict[str, list[str]]:
    file = directory / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))[KEY]
        sizes = (list(config["threads_per_block"]), config["bytes_per_thread"])
        patterns = {str(key): [str(path) for path in paths] for key, paths in config["pattern_dict"].items()}
        for pattern in patterns:
            re.compile(pattern)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, re.error, RecursionError) as error:
        raise CheckpointError(f"{file}: {KEY} is damaged.", AGAIN) from error
    if sizes != (THREADS, BYTES):
        raise CheckpointError(
            f"{file}: {KEY} has blocks of {sizes[0]} threads of {sizes[1]} bytes; modicum reads {THREADS} of {BYTES}.",
            "Open it with the package dfloat11.",
        )
    return patterns


def _group(directory: Path, name: str, patterns: Mapping[str, Sequence[str]], model: nn.Module) -> CodedGroup:
    paths = next((paths for pattern, paths in patterns.items() if re.fullmatch(pattern, name)), None)
    if paths is None:
        raise CheckpointError(f"{directory / 'config.json'}: no pattern of {KEY} matches {name}.", AGAIN)
    owners = [f"{name}.{path}" for path in paths] or [name]
    weights = []
    for owner in owners:
        try:
            shape = tuple(model.get_parameter(f"{owner}.weight").shape)
        except AttributeError as error:
            raise CheckpointError(f"{directory}: the model has no weight {owner}.weight.", AGAIN) from error
        weights.append(
            CodedWeight(name=f"{owner}.weight", shape=shape, tensors=((f"{owner}.weight", shape),))
        )
    return CodedGroup(weights=tuple(weights))


def open_shards(directory: Path) -> Shards:
    """The tensors of a checkpoint that modicum wrote or that is not coded; a coded one is read as its original."""
    layout = Layout.of(Manifest.present(directory), directory) if directory.is_dir() else None
    return Shards(directory) if layout is None else CodedShards(directory, layout)
