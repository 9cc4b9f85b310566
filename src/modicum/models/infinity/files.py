"""Infinity on disk: original checkpoints in, modicum's directory out and in.

The originals are `infinity_2b_reg.pth` (a state dict), `infinity_8b_weights/` (shards with an index), training
checkpoints that hold one of them, and `infinity_vae_*.pth` (a state dict under "vae"). `convert` writes them once as a
directory:

    config.json          sizes
    model.safetensors    transformer
    vae.safetensors      tokenizer
    text_encoder/        flan-t5-xl, if somebody puts it there

Names are the original ones with two exceptions. Blocks are one list; the original groups them into chunks for training
on many devices. Convolutions and norms of the tokenizer are not wrapped in a module each, as in its oldest files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from modicum.models.infinity.config import InfinityConfig
from modicum.models.infinity.model import Infinity
from modicum.models.infinity.text import TextEncoder
from modicum.models.infinity.transformer import untrained_text
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

CONFIG, MODEL, VAE, TEXT = "config.json", "model.safetensors", "vae.safetensors", "text_encoder"
_ZERO = "zero_k_bias"
_BUFFERS = (_ZERO, "lvl_1L", "attn_bias_for_masking", "Infinity_visible_kvlen", "Infinity_invisible_qlen")
_CHUNK = re.compile(r"block_chunks\.(\d+)\.module\.(\d+)\.")
_WRAPPED = re.compile(r"((?:^|\.)(?:conv\w*|norm\w*|nin_shortcut)\.)(?:conv|norm)\.(?=(?:weight|bias)$)")
_NESTED = {"transformer": (("trainer", "gpt_fsdp"),), "tokenizer": (("vae",),)}


def load_infinity(
    directory: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    text_encoder: str | Path | None = None,
    transformer: Mapping[str, Tensor] | None = None,
    prepare: Prepare = unchanged,
) -> Infinity:
    """Open a directory that `convert` or `save` wrote, in evaluation mode.

    Args:
        directory: with config.json, model.safetensors and vae.safetensors.
        dtype: of the transformer's blocks; everything else runs in float32.
        device: where to put it.
        text_encoder: directory of flan-t5-xl; `text_encoder` in `directory` by default, if it is there.
        transformer: its tensors, if they are not to be read from model.safetensors.
        prepare: called with the transformer while it has no weights.

    Raises:
        CheckpointError: a file is missing, unreadable, or at odds with the config.
    """
    directory = Path(directory)
    config = InfinityConfig.from_dict(read_json(directory / CONFIG, "an Infinity model"))
    tensors = read_tensors(directory / MODEL) if transformer is None else transformer
    model = assemble(config, tensors, read_tensors(directory / VAE), dtype, prepare).to(device)
    if text_encoder is None and (directory / TEXT).is_dir():
        text_encoder = directory / TEXT
    if text_encoder is not None:
        model.text_encoder = TextEncoder(text_encoder, device=device, max_tokens=config.text_maxlen)
    return model


def convert(
    transformer: str | Path,
    vae: str | Path,
    out: str | Path,
    config: InfinityConfig | str,
    *,
    half: bool = False,
) -> Path:
    """Write original checkpoints as a directory that `load_infinity` opens.

    Args:
        transformer: `infinity_2b_reg.pth`, `infinity_8b_weights` or the like; safetensors with the same names will do.
        vae: `infinity_vae_d32reg.pth` or the like.
        out: directory to write; it appears whole or not at all.
        config: sizes, or the name of a preset.
        half: store the transformer's blocks in bfloat16.

    Raises:
        CheckpointError: a file is unreadable, lacks tensors, has others, or was made for other sizes.
        OutputExists: `out` is there already.
    """
    config = InfinityConfig.preset(config) if isinstance(config, str) else config
    model = assemble(
        config,
        transformer_tensors(read_tensors(Path(transformer), _NESTED["transformer"]), config),
        tokenizer_tensors(read_tensors(Path(vae), _NESTED["tokenizer"])),
    )
    return save(model, out, half=half)


def save(model: Infinity, out: str | Path, *, half: bool = False) -> Path:
    """Write a model as a directory that `load_infinity` opens, without its text encoder.

    Args:
        model: to write.
        out: directory that does not exist yet.
        half: store the transformer's blocks in bfloat16.

    Raises:
        OutputExists: `out` is there already.
    """
    sizes = {"model_type": model.config.model_type, **model.config.to_dict()}
    weights = {
        MODEL: stored(model.transformer, lambda name: half and _in_block(name), (_ZERO,)),
        VAE: stored(model.vae, lambda _: False),
    }
    return write_directory(Path(out), {CONFIG: json.dumps(sizes, indent=2) + "\n"}, weights)


def assemble(
    config: InfinityConfig,
    transformer: Mapping[str, Tensor],
    vae: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
    prepare: Prepare = unchanged,
) -> Infinity:
    """A model in evaluation mode out of two state dicts with modicum's names.

    Args:
        config: sizes.
        transformer: parameters.
        vae: parameters.
        dtype: of the transformer's blocks.
        prepare: called with the transformer while it has no weights.

    Raises:
        CheckpointError: names or shapes do not fit the config; the message lists them.
    """
    with torch.device("meta"):
        model = Infinity(config)
    for module in model.transformer.modules():
        if isinstance(module, SelfAttention):
            module.zero_k_bias = torch.zeros(config.embed_dim)

    model.transformer.blocks.to(dtype)
    prepare(model.transformer)

    def precision(name: str) -> torch.dtype:
        return dtype if _in_block(name) else torch.float32

    fill(model.transformer, transformer, "transformer", precision, derived=(_ZERO,))
    fill(model.vae, vae, "tokenizer", lambda _: torch.float32)
    return model.eval()


def transformer_tensors(tensors: Mapping[str, Tensor], config: InfinityConfig) -> dict[str, Tensor]:
    """An original state dict under modicum's names, without buffers.

    Args:
        tensors: of the transformer.
        config: sizes; the text for "no text" is cut, or filled up with what it is before training.
    """
    inner = [int(found[2]) for name in tensors if (found := _CHUNK.match(name))]
    depth = max(inner, default=0) + 1  # blocks of a chunk

    def flat(found: re.Match[str]) -> str:
        return f"blocks.{int(found[1]) * depth + int(found[2])}."

    renamed = {
        _CHUNK.sub(flat, name).replace("text_proj_for_sos.ca.", "text_proj_for_sos."): tensor
        for name, tensor in tensors.items()
        if not name.endswith(_BUFFERS)
    }
    given = renamed.get("cfg_uncond")
    if given is not None and given.dim() == 2 and given.shape[1] == config.text_channels:
        rest = untrained_text(config.text_maxlen, config.text_channels)[len(given) :].to(given.dtype)
        renamed["cfg_uncond"] = torch.cat((given[: config.text_maxlen], rest))
    return renamed


def tokenizer_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An original state dict under modicum's names; the powers of two that belong to the bits are left out."""
    return {
        _WRAPPED.sub(r"\1", name): tensor for name, tensor in tensors.items() if not name.endswith("lfq.mask")
    }


def _in_block(name: str) -> bool:
    return name.startswith("blocks.")
