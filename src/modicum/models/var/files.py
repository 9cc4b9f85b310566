"""VAR on disk: original checkpoints in, modicum's directory out and in.

The original files are `var_d16.pth` ... and `vae_ch160v4096z32.pth`: pickled state dicts, opened without running
code. `convert` writes them once as a directory:

    config.json          sizes
    model.safetensors    transformer, original names, without the buffers that follow from the sizes
    vae.safetensors      VQVAE, original names
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modicum.errors import CheckpointError, OutputExists
from modicum.models.next_scale import SelfAttention
from modicum.models.var.config import VARConfig
from modicum.models.var.model import VAR
from modicum.models.var.transformer import derived_buffers

CONFIG, MODEL, VAE = "config.json", "model.safetensors", "vae.safetensors"
_DERIVED = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias", "ema_vocab_hit_SV")
_SHOWN = 5


def load_var(directory: str | Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> VAR:
    """Open a directory that `convert` or `save` wrote, in evaluation mode.

    Args:
        directory: with config.json, model.safetensors and vae.safetensors.
        dtype: of the transformer; the VQVAE always runs in float32.
        device: where to put it.

    Raises:
        CheckpointError: a file is missing, unreadable, or at odds with the config.
    """
    directory = Path(directory)
    config = read_config(directory / CONFIG)
    return assemble(config, read_tensors(directory / MODEL), read_tensors(directory / VAE), dtype).to(device)


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
    out = Path(out)
    if out.exists():
        raise OutputExists(f"{out} is already there.", "Name another directory, or move it away.")
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    sizes = {"model_type": "var", **model.config.to_dict()}
    texts = {CONFIG: json.dumps(sizes, indent=2) + "\n", **(extra or {})}
    for name, text in texts.items():
        (partial / name).write_text(text, encoding="utf-8")
    save_file(_stored(model.transformer, half), partial / MODEL, {"format": "pt"})
    save_file(_stored(model.vae, half), partial / VAE, {"format": "pt"})
    for name, content in (tensors or {}).items():
        save_file(content, partial / name)
    for file in partial.iterdir():
        file.chmod(0o644)
    os.replace(partial, out)
    return out


def assemble(
    config: VARConfig,
    transformer: dict[str, Tensor],
    vae: dict[str, Tensor],
    dtype: torch.dtype = torch.float32,
) -> VAR:
    """A model in evaluation mode out of two state dicts with original names.

    Args:
        config: sizes.
        transformer: parameters, with or without buffers.
        vae: likewise.
        dtype: of the transformer.

    Raises:
        CheckpointError: names or shapes do not fit the config; the message lists them.
    """
    with torch.device("meta"):
        model = VAR(config)
    _restore_buffers(model)
    _fill(model.transformer, transformer, dtype, "transformer")
    _fill(model.vae, vae, torch.float32, "VQVAE")
    return model.eval()


def read_config(path: Path) -> VARConfig:
    """The sizes in a config.json.

    Raises:
        CheckpointError: missing or no JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}", "Give a directory with a VAR model."
        ) from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} does not hold an object.", "Give a directory with a VAR model.")
    return VARConfig.from_dict(data)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors or .pth file; no code in it is run.

    Raises:
        CheckpointError: missing, truncated, or not a state dict.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        data = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} cannot be read: {reason}", "Download or copy the file again."
        ) from error
    if not isinstance(data, dict) or not all(isinstance(value, Tensor) for value in data.values()):
        raise CheckpointError(f"{path} is not a state dict.", "Give the file with the weights alone.")
    return data


def _fill(module: nn.Module, tensors: dict[str, Tensor], dtype: torch.dtype, part: str) -> None:
    """Put tensors into a module whose parameters may be on the meta device."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    optional = {name for name in wanted if name.endswith(_DERIVED)}
    missing = sorted(wanted.keys() - tensors.keys() - optional)
    unexpected = sorted(tensors.keys() - wanted.keys())
    _refuse(part, [f"missing: {name}" for name in missing] + [f"unexpected: {name}" for name in unexpected])
    checked = wanted.keys() & tensors.keys() - {name for name in optional if name.endswith(_DERIVED[-1])}
    shapes = {name: (tuple(tensors[name].shape), wanted[name]) for name in sorted(checked)}
    _refuse(
        part, [f"{name}: {has}, expected {needs}" for name, (has, needs) in shapes.items() if has != needs]
    )
    values = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
        if name not in optional
    }
    module.load_state_dict(values, strict=False, assign=True)
    module.to(dtype)


def _refuse(part: str, faults: list[str]) -> None:
    if faults:
        shown = "; ".join(faults[:_SHOWN])
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise CheckpointError(
            f"The {part} weights do not fit the configuration ({len(faults)} tensors): {shown}{more}.",
            "Give the configuration or preset that the checkpoint was made for.",
        )


def _restore_buffers(model: VAR) -> None:
    """Give the buffers of a model on the meta device their values, which follow from the sizes."""
    transformer, quantizer = model.transformer, model.vae.quantize
    transformer.lvl_1L, transformer.attn_bias_for_masking = derived_buffers(model.schedule)
    for module in transformer.modules():
        if isinstance(module, SelfAttention):
            module.zero_k_bias = torch.zeros(model.config.embed_dim)
    quantizer.ema_vocab_hit_SV = torch.zeros(quantizer.ema_vocab_hit_SV.shape)


def _stored(module: nn.Module, half: bool) -> dict[str, Tensor]:
    def kept(tensor: Any) -> Tensor:
        return tensor.detach().to("cpu", torch.bfloat16 if half else tensor.dtype).contiguous()

    return {name: kept(tensor) for name, tensor in module.state_dict().items() if not name.endswith(_DERIVED)}
