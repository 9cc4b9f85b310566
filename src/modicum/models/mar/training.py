"""What MAR is asked in training: most tokens of a picture are hidden, and are to be drawn out of the others.

How many are hidden is drawn once per batch, out of the left half of a normal distribution around "all" (deviation
0.25, at least 70 %). Every hidden token is drowned in noise four times, at four steps, which makes the best of the
large network's work. Dropout inside the blocks, a tenth in the original, is left out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from modicum.models.dit.gaussian import STEPS, GaussianDiffusion
from modicum.models.mar.config import MARConfig
from modicum.models.mar.transformer import patches, taken

DEVIATION = 0.25
LEAST_HIDDEN = 0.7
COPIES = 4
LABEL_DROPOUT = 0.1


def hide(
    config: MARConfig, latents: Tensor, labels: Tensor, generator: torch.Generator, training: bool = True
) -> dict[str, Tensor]:
    """What the network is asked about pictures; everything random is drawn here.

    Args:
        config: sizes.
        latents: `[B, vae_embed_dim, side, side]` at unit scale.
        labels: int64 `[B]`.
        generator: on the device of the latents.
        training: whether a tenth of the pictures loses its class.

    Returns:
        First axis the picture: tokens `[B, S, C]`, visible int64 `[B, V]` and hidden int64 `[B, n]` places, y int64
        `[B]` with -1 for "no class", steps t int64 `[B, copies, n]`, noise and noisy tokens x `[B, copies, n, C]`.
    """
    rows, device = len(latents), latents.device
    order = torch.rand(rows, config.tokens, generator=generator, device=device).argsort(dim=1)
    count = math.ceil(config.tokens * hidden_share(generator).item())
    hidden, visible = order[:, :count], order[:, count:]
    dropped = torch.rand(rows, generator=generator, device=device) < (LABEL_DROPOUT if training else 0)
    tokens = patches(latents, config)  # [B, S, C]
    shape = (rows, COPIES, count)
    t = torch.randint(STEPS, shape, generator=generator, device=device)
    noise = torch.randn(*shape, config.channels, generator=generator, device=device)
    x0 = taken(tokens, hidden)[:, None].expand_as(noise)
    diffusion = GaussianDiffusion(device=device, schedule="cosine")
    x = diffusion.q_sample(x0.flatten(0, 2), t.flatten(), noise.flatten(0, 2)).view_as(noise)
    y = labels.masked_fill(dropped, -1)
    return {"tokens": tokens, "visible": visible, "hidden": hidden, "y": y, "t": t, "noise": noise, "x": x}


def hidden_share(generator: torch.Generator) -> Tensor:
    """Share of the tokens that a batch hides, in [0.7, 1]: a truncated normal, by its inverse distribution."""
    lowest = 0.5 * (1 + math.erf((LEAST_HIDDEN - 1) / DEVIATION / math.sqrt(2)))
    level = lowest + (0.5 - lowest) * torch.rand((), generator=generator, device=generator.device)
    return 1 + DEVIATION * math.sqrt(2) * torch.erfinv(2 * level - 1)
