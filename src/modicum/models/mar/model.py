"""MAR as a whole: labels to latents, some tokens at a time, in random order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from modicum.errors import InvalidSetting
from modicum.models.dit.gaussian import GaussianDiffusion
from modicum.models.dit.sampling import DrawNoise, denoise, seeded_noise
from modicum.models.dit.vae import picture
from modicum.models.mar.transformer import Transformer
from modicum.models.next_scale.sampling import Seed, generators

CfgSchedule = Literal["linear", "constant"]
LATENT_SCALE = 0.2325  # of the published autoencoder's latents


class MAR(Transformer):
    """The network with its sampler."""

    @torch.no_grad()
    def generate(
        self,
        labels: int | Sequence[int] | Tensor,
        *,
        count: int = 1,
        cfg: float = 3.0,
        cfg_schedule: CfgSchedule = "linear",
        iterations: int = 64,
        steps: int | str = 100,
        temperature: float = 1.0,
        seed: Seed = None,
        vae: nn.Module | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Tensor:
        """Draw pictures.

        Args:
            labels: one class, or several.
            count: pictures per label.
            cfg: guidance; 1 runs no unconditional rows.
            cfg_schedule: "linear" raises it from 1 with the share of tokens that are drawn.
            iterations: in how many rounds the tokens are drawn, few at first (cosine).
            steps: of the diffusion that draws a token.
            temperature: of its noise.
            seed: one for the batch, or one per picture, which makes a picture independent of its neighbours.
            vae: a diffusers AutoencoderKL, for latents.
            progress: called with the share of tokens that are drawn.

        Returns:
            Images in [0, 1], float32 `[B, channels, side, side]`; without a `vae`, a model of latents gives
            latents at unit scale.

        Raises:
            InvalidSetting: a label, a count, or steps out of range, or a wrong number of seeds.
        """
        y = self._labels(labels, count, iterations)
        streams, total = generators(seed, len(y), self.device), self.config.tokens
        order = _orders(streams, len(y), total, self.device)
        noise = seeded_noise(streams)
        diffusion = GaussianDiffusion(steps, True, self.device, "cosine")
        tokens = torch.zeros(len(y), total, self.config.channels, device=self.device)
        hidden = total
        for left in hidden_counts(total, iterations):
            share = 1 - max(left, 1) / total
            scale = 1 + (cfg - 1) * share if cfg_schedule == "linear" else cfg
            z = self._known(tokens, order[:, hidden:], y, guided=cfg != 1)
            drawn = order[:, left:hidden]  # the last of the hidden ones
            network = self._guided(z, drawn, scale)
            values = self._draw(diffusion, network, drawn.shape, noise, temperature)
            tokens = tokens.scatter(1, drawn[..., None].expand(-1, -1, tokens.shape[-1]), values)
            hidden = left
            if progress is not None:
                progress(1 - left / total)
        return picture(self.unpatchify(tokens), self.latent_scale, vae)

    @property
    def latent_scale(self) -> float | None:
        """The autoencoder reads latents divided by this; None for a model of pixels."""
        return None if self.config.pixel_space else LATENT_SCALE

    def _known(self, tokens: Tensor, visible: Tensor, y: Tensor, *, guided: bool) -> Tensor:
        """What the decoder knows, `[B, S, D]`; under guidance once more without the class, `[2 B, S, D]`."""
        if guided:
            y = torch.cat((y, torch.full_like(y, -1)))
            tokens, visible = tokens.repeat(2, 1, 1), visible.repeat(2, 1)
        return self.forward(tokens, visible, y)

    def _guided(self, z: Tensor, drawn: Tensor, scale: float) -> Callable[[Tensor, Tensor], Tensor]:
        """The token network for the places `drawn` `[B, n]` as a function of noisy tokens and time."""
        copies = len(z) // len(drawn)
        index = drawn.repeat(copies, 1)[..., None].expand(-1, -1, z.shape[-1])
        chosen = z.gather(1, index).flatten(0, 1)  # [copies B n, D]

        def network(x: Tensor, t: Tensor) -> Tensor:
            out = self.token_network(x.repeat(copies, 1), t.repeat(copies), chosen).float()
            if copies == 1:
                return out
            (conditional, unconditional), channels = out.chunk(2), x.shape[-1]
            noise = unconditional + scale * (conditional - unconditional)
            return torch.cat((noise[:, :channels], conditional[:, channels:]), dim=1)

        return network

    def _draw(
        self,
        diffusion: GaussianDiffusion,
        network: Callable[[Tensor, Tensor], Tensor],
        places: torch.Size,
        noise: DrawNoise,
        temperature: float,
    ) -> Tensor:
        """Values `[B, n, C]` of n tokens of every picture."""
        like = torch.empty(*places, self.config.channels, device=self.device)

        def cooled(step: int, x: Tensor) -> Tensor:
            return noise(step, like).flatten(0, 1) * temperature

        *_, last = denoise(diffusion, network, noise(-1, like).flatten(0, 1), cooled)
        return last.x.view_as(like)

    def _labels(self, labels: int | Sequence[int] | Tensor, count: int, iterations: int) -> Tensor:
        """Validated labels, int64 `[B]`."""
        if count < 1 or iterations < 1:
            raise InvalidSetting(f"count is {count}, iterations is {iterations}.", "Give 1 or more.")
        given = torch.as_tensor(labels, dtype=torch.long).reshape(-1).repeat_interleave(count)
        if given.numel() == 0 or int(given.min()) < 0 or int(given.max()) >= self.config.class_num:
            raise InvalidSetting(
                f"{given.unique().tolist()} are not all labels of this model.",
                f"Labels go from 0 to {self.config.class_num - 1}.",
            )
        return given.to(self.device)


def hidden_counts(total: int, iterations: int) -> list[int]:
    """How many tokens are still hidden after each round: a cosine, at least one fewer every round, 0 at the end.

    Args:
        total: tokens of a picture.
        iterations: rounds asked for; no more are made than there are tokens.
    """
    counts, hidden = [], total
    for index in range(1, iterations):
        wanted = math.floor(total * math.cos(math.pi / 2 * index / iterations))
        left = max(1, min(hidden - 1, wanted))
        if left < hidden:
            counts.append(left)
        hidden = left
    return [*counts, 0]


def _orders(streams: list[torch.Generator] | None, rows: int, total: int, device: torch.device) -> Tensor:
    """A random order of the tokens for every picture, int64 `[rows, total]`; the last ones are drawn first."""
    if streams is None or len(streams) == 1:
        source = streams[0] if streams else None
        return torch.rand(rows, total, generator=source, device=device).argsort(dim=1)
    keys = [torch.rand(total, generator=source, device=device) for source in streams]
    return torch.stack(keys).argsort(dim=1)
