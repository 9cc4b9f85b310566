"""The autoencoder between pictures and the latents that DiT and SiT draw: AutoencoderKL of diffusers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from modicum.errors import CheckpointError, InvalidSetting, MissingExtra


def load_vae(directory: str | Path, channels: int | None = None, device: str = "cpu") -> nn.Module:
    """Open an AutoencoderKL in float32 and evaluation mode; nothing is fetched.

    Args:
        directory: as diffusers writes it.
        channels: what its latents must have; None: any number.
        device: where it goes.

    Raises:
        MissingExtra: diffusers is not installed.
        CheckpointError: the directory is missing, or holds no such autoencoder.
        InvalidSetting: its latents have another number of channels.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise MissingExtra.of("diffusers", "images", "The autoencoder of latents") from error
    if not (Path(directory) / "config.json").is_file():
        raise CheckpointError(
            f"{directory} is no directory of an AutoencoderKL.", "Give one with config.json and its weights."
        )
    try:
        vae = AutoencoderKL.from_pretrained(directory, local_files_only=True, low_cpu_mem_usage=False)
    except Exception as error:  # diffusers lets through whatever its parts stumble on
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{directory} cannot be opened as an AutoencoderKL: {reason}", "Copy it again."
        ) from error
    if channels is not None and vae.config.latent_channels != channels:
        raise InvalidSetting(
            f"The latents of {directory} have {vae.config.latent_channels} channels, the model draws {channels}.",
            "Give the autoencoder that the model was trained with.",
        )
    return vae.float().to(device).eval().requires_grad_(False)


@torch.no_grad()
def picture(x: Tensor, scale: float | None, vae: nn.Module | None = None) -> Tensor:
    """What a sampler ends with, as images in [0, 1].

    Args:
        x: pixels in [-1, 1], or latents at unit scale.
        scale: the autoencoder reads latents divided by this; None: `x` are pixels.
        vae: decodes latents, which stay latents without it.
    """
    if scale is None:
        return ((x + 1) / 2).clamp(0, 1)
    if vae is None:
        return x
    dtype = next(vae.parameters()).dtype
    decoded = vae.decode((x / scale).to(dtype)).sample  # type: ignore[operator]
    return ((decoded.float() + 1) / 2).clamp(0, 1)
