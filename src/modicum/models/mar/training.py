"""The training loss of MAR: hide most tokens of a picture, and learn to draw them out of the others.

How many are hidden is drawn once per batch, out of the left half of a normal distribution around "all" (deviation
0.25, at least 70 %). Every hidden token is drowned in noise four times, at four steps, which makes the best of the
large network's work. Dropout inside the blocks, a tenth in the original, is left out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from modicum.models.dit.gaussian import STEPS, GaussianDiffusion
from modicum.models.mar.model import MAR

DEVIATION = 0.25
LEAST_HIDDEN = 0.7
REPEATS = 4
LABEL_DROPOUT = 0.1


def masked_loss(model: MAR, latents: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Squared error of the noise and bound for the variance, averaged over the hidden tokens, float32 `[B]`.

    Args:
        model: in training mode it sees a tenth of the pictures without their class.
        latents: `[B, vae_embed_dim, side, side]` at unit scale.
        labels: int64 `[B]`.
        generator: of everything random, on the device of the latents.
    """
    config, device, rows = model.config, latents.device, len(latents)
    order = torch.rand(rows, config.tokens, generator=generator, device=device).argsort(dim=1)
    count = math.ceil(config.tokens * hidden_share(generator).item())
    hidden, visible = order[:, :count], order[:, count:]
    classes = model.class_emb(labels)
    if model.training:
        dropped = torch.rand(rows, 1, generator=generator, device=device) < LABEL_DROPOUT
        classes = torch.where(dropped, model.fake_latent, classes)
    tokens = model.patchify(latents)  # [B, S, C]
    z = model(tokens, visible, classes)
    x0, known = (_repeated(each, hidden) for each in (tokens, z))  # [4 B n, C], [4 B n, D]
    t = torch.randint(STEPS, (len(x0),), generator=generator, device=device)
    noise = torch.randn(x0.shape, generator=generator, device=device)
    diffusion = GaussianDiffusion(device=device, schedule="cosine")
    losses = diffusion.losses(lambda x, step: model.token_network(x, step, known), x0, t, noise)
    return losses.loss.view(REPEATS, rows, -1).mean(dim=(0, 2))


def hidden_share(generator: torch.Generator) -> Tensor:
    """Share of the tokens that a batch hides, in [0.7, 1]: a truncated normal, by its inverse distribution."""
    lowest = 0.5 * (1 + math.erf((LEAST_HIDDEN - 1) / DEVIATION / math.sqrt(2)))
    level = lowest + (0.5 - lowest) * torch.rand((), generator=generator, device=generator.device)
    return 1 + DEVIATION * math.sqrt(2) * torch.erfinv(2 * level - 1)


def _repeated(values: Tensor, places: Tensor) -> Tensor:
    """`[B, S, C]` at `[B, n]`, four times over: `[4 B n, C]`."""
    index = places[..., None].expand(-1, -1, values.shape[-1])
    return values.gather(1, index).flatten(0, 1).repeat(REPEATS, 1)
