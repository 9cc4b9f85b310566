"""Original checkpoints of VAR and Infinity as directories that modicum opens.

Which model a checkpoint belongs to is read off its tensors: the kind from their names, the preset from their shapes,
by comparing them with those of every published model on the meta device, where nothing is held. What fits no preset
is compared with the nearest one, tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modicum.errors import CheckpointError, OutputExists, UnknownName
from modicum.models import infinity, var
from modicum.models.image_models import Kind
from modicum.models.infinity import files as infinity_files
from modicum.models.next_scale import NextScaleModel
from modicum.models.state_files import read_tensors
from modicum.models.var import files as var_files

NESTED = (("trainer", "gpt_fsdp"), ("vae",))  # where training checkpoints and tokenizers keep their tensors
SIGNS: dict[str, Kind] = {"class_emb.weight": "var", "text_norm.weight": "infinity"}

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Converted:
    """What was found and written.

    Attributes:
        kind: of the model.
        preset: its published name.
        alike: presets with the same shapes, which the checkpoint may be meant for as well.
        parameters: of the transformer.
        tokenizer_parameters: of the part that turns features into pixels.
        model: its sizes, for those who want to know more.
    """

    kind: Kind
    preset: str
    alike: tuple[str, ...]
    parameters: int
    tokenizer_parameters: int
    model: NextScaleModel


@dataclass(frozen=True)
class _Original:
    """How the checkpoints of one kind are read: all presets, shapes, model, and how it is written."""

    presets: Mapping[str, Any]
    transformer: Callable[[Any], nn.Module]
    renamed: Callable[[Mapping[str, Tensor], Any], Mapping[str, Tensor]]
    tokenizer: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    assemble: Callable[..., Any]
    save: Callable[..., Path]


def convert(
    transformer: str | Path,
    tokenizer: str | Path,
    out: str | Path,
    *,
    preset: str | None = None,
    half: bool = False,
) -> Converted:
    """Write original checkpoints as a directory.

    Args:
        transformer: `var_d16.pth`, `infinity_2b_reg.pth`, `infinity_8b_weights` or the like.
        tokenizer: `vae_ch160v4096z32.pth`, `infinity_vae_d32reg.pth` or the like.
        out: directory to write; it appears whole or not at all.
        preset: name of the published sizes; found by the shapes by default.
        half: store in bfloat16.

    Raises:
        CheckpointError: a file is unreadable, of another model, or of sizes that fit no preset or not this one.
        UnknownName: there is no such preset.
        OutputExists: `out` is there already.
    """
    if Path(out).exists():
        raise OutputExists(f"{out} is already there.", "Name another directory, or move it away.")
    tensors = read_tensors(Path(transformer), NESTED)
    kind = _kind(tensors, transformer)
    original = _originals()[kind]
    if preset is None:
        fitting = _fitting(original, tensors, transformer)
    elif preset in original.presets:
        fitting = (preset,)
    else:
        raise UnknownName.among(f"{kind} preset", preset, original.presets)
    config = original.presets[fitting[0]]
    pixels = original.tokenizer(read_tensors(Path(tokenizer), NESTED))
    model = original.assemble(config, original.renamed(tensors, config), pixels)
    original.save(model, out, half=half)
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.transformer, model.vae)]
    return Converted(kind, fitting[0], fitting[1:], counts[0], counts[1], model)


def _originals() -> dict[Kind, _Original]:
    return {
        "var": _Original(
            var.PRESETS, var.Transformer, lambda tensors, _: tensors, dict, var_files.assemble, var_files.save
        ),
        "infinity": _Original(
            infinity.PRESETS,
            infinity.Transformer,
            infinity_files.transformer_tensors,
            infinity_files.tokenizer_tensors,
            infinity_files.assemble,
            infinity_files.save,
        ),
    }


def _kind(tensors: Mapping[str, Tensor], file: str | Path) -> Kind:
    for sign, kind in SIGNS.items():
        if sign in tensors:
            return kind
    raise CheckpointError(
        f"{file} holds neither VAR nor Infinity: it has no tensor {' or '.join(map(repr, SIGNS))}.",
        "Give the file of the transformer first, that of the tokenizer with --vae.",
    )


def _fitting(original: _Original, tensors: Mapping[str, Tensor], file: str | Path) -> tuple[str, ...]:
    """Presets of exactly these shapes.

    Raises:
        CheckpointError: there is none; the message compares with the nearest.
    """
    differing: dict[str, list[str]] = {}
    for name, config in original.presets.items():
        given = {key: tuple(tensor.shape) for key, tensor in original.renamed(tensors, config).items()}
        with torch.device("meta"):
            wanted = {key: tuple(p.shape) for key, p in original.transformer(config).named_parameters()}
        differing[name] = [key for key, shape in wanted.items() if given.get(key) != shape]
        differing[name] += sorted(_blocks(given) - _blocks(wanted))
    if found := tuple(name for name, keys in differing.items() if not keys):
        return found
    nearest = min(differing, key=lambda name: len(differing[name]))
    raise CheckpointError(
        f"{file} has the sizes of no published model; {nearest} is nearest and differs in "
        f"{len(differing[nearest])} tensors, the first is {differing[nearest][0]!r}.",
        f"Published are {', '.join(original.presets)}; a model of other sizes is saved from Python.",
    )


def _blocks(shapes: Shapes) -> set[str]:
    """Names of the repeated parts: a deeper model has all tensors of a shallower one."""
    return {".".join(key.split(".")[:2]) for key in shapes if key.startswith("blocks.")}
