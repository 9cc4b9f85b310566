"""DiT, SiT and TinyDiT on disk: original checkpoints in, modicum's directory out and in.

The original files are pickled state dicts, opened without running code: the bare weights (`DiT-XL-2-256x256.pt`,
TinyDiT), or what the training script saved, whose moving average under "ema" is the model. Their names are the
model's, so that a directory holds the same tensors:

    config.json          sizes
    model.safetensors    all parameters, the position table among them, original names

Directories of diffusers (`DiTTransformer2DModel`, or a pipeline that holds one) are read and written too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from modicum.models.dit import diffusers_layout
from modicum.models.dit.config import DiTConfig
from modicum.models.dit.model import DiT
from modicum.models.state_files import (
    Prepare,
    fill,
    read_json,
    read_tensors,
    stored,
    unchanged,
    write_directory,
)

CONFIG, MODEL = "config.json", "model.safetensors"
POSITIONS = "pos_embed"
DIFFUSERS_MODEL = "diffusion_pytorch_model.safetensors"


def load_dit(directory: str | Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> DiT:
    """Open a directory that `convert`, `save` or diffusers wrote, in evaluation mode.

    Args:
        directory: with config.json and weights, or a diffusers pipeline with those in `transformer`.
        dtype: of the parameters; float16 overflows in the late blocks of large models.
        device: where to put it.

    Raises:
        CheckpointError: a file is missing, unreadable, or at odds with the config; or the blocks of a diffusers
            model hold different embedders.
    """
    directory = Path(directory)
    if (directory / "model_index.json").exists():
        directory = directory / "transformer"
    data = read_json(directory / CONFIG, "a DiT model")
    if data.get("_class_name") == diffusers_layout.CLASS:
        config = diffusers_layout.read_config(data)
        tensors = diffusers_layout.from_diffusers(read_tensors(directory), config)
        return assemble(config, tensors, dtype).to(device)
    config = DiTConfig.from_dict(data)
    return assemble(config, read_tensors(directory / MODEL), dtype).to(device)


def convert(weights: str | Path, out: str | Path, config: DiTConfig | str, *, half: bool = False) -> Path:
    """Write an original checkpoint as a directory that `load_dit` opens.

    Args:
        weights: `DiT-XL-2-256x256.pt`, a checkpoint of the training script, or safetensors with the same names.
        out: directory to write; it appears whole or not at all.
        config: sizes, or the name of a preset.
        half: store in bfloat16.

    Raises:
        CheckpointError: the file is unreadable, lacks tensors, has others, or was made for other sizes.
        OutputExists: `out` is there already.
    """
    config = DiTConfig.preset(config) if isinstance(config, str) else config
    return save(assemble(config, read_original(Path(weights))), out, half=half)


def read_original(path: Path, inside: Sequence[str] = ("ema",)) -> dict[str, Tensor]:
    """The weights in an original file: the bare state dict, or the moving average of a training checkpoint.

    Args:
        path: of the file.
        inside: keys under which a training checkpoint may hold them, the first that is there.

    Raises:
        CheckpointError: missing, truncated, or not a state dict.
    """
    with torch.serialization.safe_globals([argparse.Namespace]):  # the training script keeps its arguments
        return read_tensors(path, inside=[(key,) for key in inside])


def save(
    model: DiT,
    out: str | Path,
    *,
    half: bool = False,
    extra: Mapping[str, str] | None = None,
    tensors: Mapping[str, dict[str, Tensor]] | None = None,
) -> Path:
    """Write a model as a directory that `load_dit` opens.

    Args:
        model: to write.
        out: directory that does not exist yet.
        half: store in bfloat16, but for the position table, which is no matter of training.
        extra: further text files to put beside the weights, by name.
        tensors: further safetensors files, by name.

    Raises:
        OutputExists: `out` is there already.
    """
    texts = {CONFIG: json.dumps(model.config.to_dict(), indent=2) + "\n", **(extra or {})}
    weights = stored(model, lambda name: half and name != POSITIONS)
    return write_directory(Path(out), texts, {MODEL: weights, **(tensors or {})})


def save_diffusers(model: DiT, out: str | Path) -> Path:
    """Write a model as a directory that `DiTTransformer2DModel.from_pretrained` opens.

    diffusers then computes with constants of its own; `diffusers_layout.exact` gives it the right ones.

    Args:
        model: to write.
        out: directory that does not exist yet.

    Raises:
        InvalidSetting: a model that diffusers' class cannot be.
        OutputExists: `out` is there already.
    """
    texts = {CONFIG: json.dumps(diffusers_layout.write_config(model.config), indent=2) + "\n"}
    tensors = diffusers_layout.to_diffusers(stored(model, lambda name: False), model.config)
    return write_directory(Path(out), texts, {DIFFUSERS_MODEL: tensors})


def from_diffusers(model: nn.Module) -> DiT:
    """modicum's DiT out of a `DiTTransformer2DModel` in memory; the weights are copied.

    It computes with the constants of the authors (see `diffusers_layout`); `save_diffusers` is the way back.

    Args:
        model: of diffusers, such as the `transformer` of a pipeline.

    Raises:
        CheckpointError: its blocks hold different embedders.
        InvalidSetting: a model that DiT cannot be.
    """
    config = diffusers_layout.read_config(model.config)  # type: ignore[arg-type]
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    made = assemble(config, diffusers_layout.from_diffusers(weights, config), next(model.parameters()).dtype)
    return made.to(next(model.parameters()).device)


def assemble(
    config: DiTConfig,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
    prepare: Prepare = unchanged,
) -> DiT:
    """A model in evaluation mode out of a state dict with original names.

    Args:
        config: sizes.
        tensors: parameters.
        dtype: of the parameters.
        prepare: called with the model while it has no weights.

    Raises:
        CheckpointError: names or shapes do not fit the config; the message lists them.
    """
    with torch.device("meta"):
        model = DiT(config).to(dtype)
    prepare(model)
    fill(model, tensors, "DiT", lambda name: dtype)
    return model.eval()
