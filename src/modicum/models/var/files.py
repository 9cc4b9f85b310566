"""VAR on disk: original checkpoints in, modicum's directory out and in.

The original files are `var_d16.pth` ... and `vae_ch160v4096z32.pth`: pickled state dicts, opened without running
code. `convert` writes them once as a directory:

    config.json          sizes
    model.safetensors    transformer, original names, without the buffers that follow from the sizes
    vae.safetensors      VQVAE, original names
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from modicum.models.next_scale import SelfAttention
from modicum.models.state_files import (
    Prepare,
    fill,
    read_json,
    read_tensors,
    stored,
    unchanged,
    write_directory,
)
from modicum.models.var.config import VARConfig
from modicum.models.var.model import VAR
from modicum.models.var.transformer import derived_buffers

CONFIG, MODEL, VAE = "config.json", "model.safetensors", "vae.safetensors"
_USAGE = "ema_vocab_hit_SV"
_DERIVED = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias", _USAGE)


def load_var(
    directory: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    transformer: Mapping[str, Tensor] | None = None,
    prepare: Prepare = unchanged,
) -> VAR:
    """Open a directory that `convert` or `save` wrote, in evaluation mode.

    Args:
        directory: with config.json, model.safetensors and vae.safetensors.
        dtype: of the transformer; the VQVAE always runs in float32.
        device: where to put it.
        transformer: its tensors, if they are not to be read from model.safetensors.
        prepare: called with the transformer while it has no weights.

    Raises:
        CheckpointError: a file is missing, unreadable, or at odds with the config.
    """
    directory = Path(directory)
    config = read_config(directory / CONFIG)
    tensors = read_tensors(directory / MODEL) if transformer is None else transformer
    return assemble(config, tensors, read_tensors(directory / VAE), dtype, prepare).to(device)


def convert(
    transformer: str | Path, vae: str | Path, out: str | Path, config: VARConfig | str, *, half: bool = False
) -> Path:
    """Write original checkpoints as a directory that `load_var` opens.

    Args:
        transformer: `var_d16.pth` or the like; safetensors with the same names will do.
        vae: `vae_ch160v4096z32.pth` or the like.
        out: directory to write; it appears whole or not at all.
        config: sizes, or the name of a preset.
        half: store in bfloat16.

    Raises:
        CheckpointError: a file is unreadable, lacks tensors, has others, or was made for other sizes.
        OutputExists: `out` is there already.
    """
    config = VARConfig.preset(config) if isinstance(config, str) else config
    model = assemble(config, read_tensors(Path(transformer)), read_tensors(Path(vae)))
    return save(model, out, half=half)


def save(
    model: VAR,
    out: str | Path,
    *,
    half: bool = False,
    extra: Mapping[str, str] | None = None,
    tensors: Mapping[str, dict[str, Tensor]] | None = None,
) -> Path:
    """Write a model as a directory that `load_var` opens.

    Args:
        model: to write.
        out: directory that does not exist yet.
        half: store in bfloat16.
        extra: further text files to put beside the weights, by name.
        tensors: further safetensors files, by name.

    Raises:
        OutputExists: `out` is there already.
    """
    sizes = {"model_type": model.config.model_type, **model.config.to_dict()}
    texts = {CONFIG: json.dumps(sizes, indent=2) + "\n", **(extra or {})}
    weights = {
        MODEL: stored(model.transformer, lambda _: half, _DERIVED),
        VAE: stored(model.vae, lambda _: half, _DERIVED),
        **(tensors or {}),
    }
    return write_directory(Path(out), texts, weights)


def assemble(
    config: VARConfig,
    transformer: Mapping[str, Tensor],
    vae: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
    prepare: Prepare = unchanged,
) -> VAR:
    """A model in evaluation mode out of two state dicts with original names.

    Args:
        config: sizes.
        transformer: parameters, with or without buffers.
        vae: likewise.
        dtype: of the transformer.
        prepare: called with the transformer while it has no weights.

    Raises:
        CheckpointError: names or shapes do not fit the config; the message lists them.
    """
    with torch.device("meta"):
        model = VAR(config)
    _restore_buffers(model)
    model.transformer.to(dtype)
    prepare(model.transformer)
    fill(model.transformer, transformer, "transformer", lambda _: dtype, derived=_DERIVED)
    fill(model.vae, vae, "VQVAE", lambda _: torch.float32, derived=_DERIVED, any_shape=(_USAGE,))
    return model.eval()


def read_config(path: Path) -> VARConfig:
    """The sizes in a config.json.

    Raises:
        CheckpointError: missing or no JSON object.
    """
    return VARConfig.from_dict(read_json(path, "a VAR model"))


def _restore_buffers(model: VAR) -> None:
    """Give the buffers of a model on the meta device their values, which follow from the sizes."""
    transformer, quantizer = model.transformer, model.vae.quantize
    transformer.lvl_1L, transformer.attn_bias_for_masking = derived_buffers(model.schedule)
    for module in transformer.modules():
        if isinstance(module, SelfAttention):
            module.zero_k_bias = torch.zeros(model.config.embed_dim)
    quantizer.ema_vocab_hit_SV = torch.zeros(quantizer.ema_vocab_hit_SV.shape)
