"""MAR on disk: original checkpoints in, modicum's directory out and in.

Original files hold `model` and its moving average `model_ema`, which is the model. Their names are the model's:

    config.json          sizes
    model.safetensors    all parameters, original names
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from modicum.models.dit.files import read_original
from modicum.models.mar.config import MARConfig
from modicum.models.mar.model import MAR
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


def load_mar(directory: str | Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> MAR:
    """Open a directory that `convert` or `save` wrote, in evaluation mode.

    Raises:
        CheckpointError: a file is missing, unreadable, or at odds with the config.
    """
    directory = Path(directory)
    config = MARConfig.from_dict(read_json(directory / CONFIG, "a MAR model"))
    return assemble(config, read_tensors(directory / MODEL), dtype).to(device)


def convert(weights: str | Path, out: str | Path, config: MARConfig | str, *, half: bool = False) -> Path:
    """Write an original checkpoint as a directory that `load_mar` opens.

    Args:
        weights: `checkpoint-last.pth`, bare weights, or safetensors with the same names.
        out: directory to write; it appears whole or not at all.
        config: sizes, or the name of a preset.
        half: store in bfloat16.

    Raises:
        CheckpointError: the file is unreadable, lacks tensors, has others, or was made for other sizes.
        OutputExists: `out` is there already.
    """
    config = MARConfig.preset(config) if isinstance(config, str) else config
    tensors = read_original(Path(weights), inside=("model_ema", "model"))
    return save(assemble(config, tensors), out, half=half)


def save(model: MAR, out: str | Path, *, half: bool = False) -> Path:
    """Write a model as a directory that `load_mar` opens.

    Raises:
        OutputExists: `out` is there already.
    """
    texts = {CONFIG: json.dumps(model.config.to_dict(), indent=2) + "\n"}
    return write_directory(Path(out), texts, {MODEL: stored(model, lambda name: half)})


def assemble(
    config: MARConfig,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
    prepare: Prepare = unchanged,
) -> MAR:
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
        model = MAR(config).to(dtype)
    prepare(model)
    fill(model, tensors, "MAR", lambda name: dtype)
    return model.eval()
