"""Original checkpoints of DiT, SiT, TinyDiT and MAR as directories that modicum opens.

Which model a checkpoint belongs to is read off its tensors: the kind from their names, the preset from their shapes.
DiT and SiT have the same names and shapes; a checkpoint that may be either is taken for DiT unless a preset says
otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from modicum.errors import CheckpointError, OutputExists, UnknownName
from modicum.models import dit, mar
from modicum.models.class_models import ClassConfig, ClassKind, ClassModel, save_class_model
from modicum.models.dit.config import LATENT_DOWNSAMPLE
from modicum.models.dit.files import assemble as assemble_dit
from modicum.models.dit.files import read_original
from modicum.models.mar.files import assemble as assemble_mar

INSIDE = ("ema", "model_ema", "model")  # where training checkpoints keep the model, the first that is there
SIGNS: dict[str, ClassKind] = {"x_embedder.proj.weight": "dit", "diffloss.net.input_proj.weight": "mar"}
SIDES = (256, 512)  # pixels for which models of latents were published


@dataclass(frozen=True)
class ConvertedClasses:
    """What was found and written.

    Attributes:
        preset: published name.
        alike: presets with the same shapes, which the checkpoint may be meant for as well.
        parameters: of the model.
        model: the model.
    """

    preset: str
    alike: tuple[str, ...]
    parameters: int
    model: ClassModel


def convert_classes(
    checkpoint: str | Path, out: str | Path, *, preset: str | None = None, half: bool = False
) -> ConvertedClasses:
    """Write an original checkpoint as a directory.

    Args:
        checkpoint: `DiT-XL-2-256x256.pt`, `SiT-XL-2-256x256.pt`, a TinyDiT, `checkpoint-last.pth` of MAR or the like.
        out: directory to write; it appears whole or not at all.
        preset: name of the published sizes; found by the shapes by default.
        half: store in bfloat16.

    Raises:
        CheckpointError: the file is unreadable, of another model, or of sizes that fit no preset or not this one.
        UnknownName: there is no such preset.
        OutputExists: `out` is there already.
    """
    if Path(out).exists():
        raise OutputExists(f"{out} is already there.", "Name another directory, or move it away.")
    tensors = read_original(Path(checkpoint), INSIDE)
    fitting = _fitting(tensors, checkpoint, preset)
    name, config = next(iter(fitting.items()))
    model = _assembled(config, tensors)
    save_class_model(model, Path(out), half=half)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ConvertedClasses(name, tuple(fitting)[1:], parameters, model)


def _fitting(tensors: Mapping[str, Tensor], file: str | Path, preset: str | None) -> dict[str, ClassConfig]:
    """The chosen preset, or all of exactly these shapes."""
    presets = _presets(_kind(tensors, file), tensors)
    if preset is not None:
        if preset not in presets:
            raise UnknownName.among("preset", preset, presets)
        return {preset: presets[preset]}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    fitting = {name: config for name, config in presets.items() if _shapes(config) == given}
    if not fitting:
        raise CheckpointError(
            f"{file} has the sizes of no published model.",
            f"Published are {', '.join(presets)}; a model of other sizes is saved from Python.",
        )
    return fitting


def _kind(tensors: Mapping[str, Tensor], file: str | Path) -> ClassKind:
    for sign, kind in SIGNS.items():
        if sign in tensors:
            return kind
    raise CheckpointError(
        f"{file} holds no DiT, SiT or MAR: it has no tensor {' or '.join(map(repr, SIGNS))}.",
        "A VAR or Infinity needs the file of its tokenizer too: name it with --vae.",
    )


def _presets(kind: ClassKind, tensors: Mapping[str, Tensor]) -> dict[str, ClassConfig]:
    """The published models of a kind; those of latents at the size that the position table has."""
    if kind == "mar":
        return dict(mar.PRESETS)
    tokens = tensors["pos_embed"].shape[1] if "pos_embed" in tensors else 0
    found: dict[str, ClassConfig] = {}
    for name, config in dit.PRESETS.items():
        sized = [config.model_copy(update={"input_size": side // LATENT_DOWNSAMPLE}) for side in SIDES]
        found[name] = next((each for each in sized if each.tokens == tokens), config)
    return found


def _shapes(config: ClassConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = mar.MAR(config) if isinstance(config, mar.MARConfig) else dit.DiT(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _assembled(config: ClassConfig, tensors: Mapping[str, Tensor]) -> ClassModel:
    if isinstance(config, mar.MARConfig):
        return assemble_mar(config, tensors)
    return assemble_dit(config, tensors)
