"""DiT and SiT as a whole: labels to pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from modicum.errors import InvalidSetting
from modicum.models.dit.gaussian import GaussianDiffusion
from modicum.models.dit.interpolant import Solver, diffuse, follow
from modicum.models.dit.sampling import SamplingStep, denoise, seeded_noise
from modicum.models.dit.transformer import GUIDED_CHANNELS, Transformer
from modicum.models.dit.vae import picture
from modicum.models.next_scale.sampling import Seed, generators

Labels = int | Sequence[int] | Tensor
Sampler = Literal["ddpm", "ddim", "ode", "sde"]
SAMPLERS: dict[str, tuple[Sampler, Sampler]] = {"dit": ("ddpm", "ddim"), "sit": ("sde", "ode")}
LATENT_SCALE = 0.18215  # of the autoencoder's latents


class DiT(Transformer):
    """The network with its samplers. Parameters bear the names of the original files."""

    def generate(
        self,
        labels: Labels,
        *,
        count: int = 1,
        cfg: float = 1.5,
        steps: int | str = 250,
        sampler: Sampler | None = None,
        eta: float = 0.0,
        solver: Solver = "dopri5",
        seed: Seed = None,
        guided_channels: int = GUIDED_CHANNELS,
        vae: nn.Module | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Tensor:
        """Draw pictures.

        Args:
            labels: one class, or several; `config.num_classes` is "no label".
            count: pictures per label.
            cfg: guidance; 1 runs no unconditional rows.
            steps: passes of the network, or a text in the notation of `respacing` (DDPM, DDIM).
            sampler: "ddpm" or "ddim" for DiT, "sde" or "ode" for SiT; the first by default.
            eta: share of noise of DDIM.
            solver: of "ode"; "dopri5" chooses its steps itself.
            seed: one for the batch, or one per picture, which makes a picture independent of its neighbours.
            guided_channels: channels under guidance, from the first; as published 3 of the 4 of a latent.
            vae: a diffusers AutoencoderKL, for latents.
            progress: called with the share of the way after every step.

        Returns:
            Images in [0, 1], float32 `[B, channels, side, side]`; without a `vae`, a model of latents gives
            latents at unit scale.

        Raises:
            InvalidSetting: a label, a count, a sampler or the steps out of range, or a wrong number of seeds.
        """
        for step in self.steps(
            labels,
            count=count,
            cfg=cfg,
            steps=steps,
            sampler=sampler,
            eta=eta,
            solver=solver,
            seed=seed,
            guided_channels=guided_channels,
        ):
            if progress is not None:
                progress(step.done)
        return self.picture(step.x, vae)

    def steps(
        self,
        labels: Labels,
        *,
        count: int = 1,
        cfg: float = 1.5,
        steps: int | str = 250,
        sampler: Sampler | None = None,
        eta: float = 0.0,
        solver: Solver = "dopri5",
        seed: Seed = None,
        guided_channels: int = GUIDED_CHANNELS,
    ) -> Iterator[SamplingStep]:
        """Draw step by step; the arguments are those of `generate`."""
        y = self._labels(labels, count, cfg)
        sampler = self._sampler(sampler, steps)
        noise = seeded_noise(generators(seed, len(y), self.device))
        side = self.config.input_size
        x = noise(-1, torch.empty(len(y), self.config.in_channels, side, side, device=self.device))
        network = self.guided(y, cfg, guided_channels)
        if sampler == "ode":
            return follow(network, x, solver, int(steps))
        if sampler == "sde":
            return diffuse(network, x, int(steps), noise)
        diffusion = GaussianDiffusion(steps, self.config.learn_sigma, self.device)
        share = eta if sampler == "ddim" else None
        return denoise(diffusion, network, x, noise, eta=share, clip=self.config.pixel_space)

    def guided(
        self, y: Tensor, cfg: float, channels: int = GUIDED_CHANNELS
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """The network for labels `y` as a function of picture and time, without gradients, under guidance."""
        labels = torch.cat((y, torch.full_like(y, self.null_label)))
        channels = min(channels, self.config.in_channels)  # never the variance

        @torch.no_grad()
        def network(x: Tensor, t: Tensor) -> Tensor:
            if cfg == 1:
                return self.forward(x, t, y).float()
            out = self.forward_with_cfg(x.repeat(2, 1, 1, 1), t.repeat(2), labels, cfg, channels)
            return out[: len(y)].float()

        return network

    @property
    def latent_scale(self) -> float | None:
        """The autoencoder reads latents divided by this; None for a model of pixels."""
        return None if self.config.pixel_space else LATENT_SCALE

    def picture(self, x: Tensor, vae: nn.Module | None = None) -> Tensor:
        """What a sampler ends with, as images in [0, 1]; latents stay latents without a `vae`."""
        return picture(x, self.latent_scale, vae)

    def _labels(self, labels: Labels, count: int, cfg: float) -> Tensor:
        """Validated labels, int64 `[B]`."""
        classes = self.config.num_classes
        if count < 1:
            raise InvalidSetting(f"count is {count}.", "Ask for 1 picture or more.")
        if cfg != 1 and self.config.class_dropout_prob == 0:
            raise InvalidSetting("This model knows no 'no label', which guidance needs.", "Give cfg=1.")
        highest = classes if self.config.class_dropout_prob > 0 else classes - 1
        given = torch.as_tensor(labels, dtype=torch.long).reshape(-1).repeat_interleave(count)
        if given.numel() == 0 or int(given.min()) < 0 or int(given.max()) > highest:
            raise InvalidSetting(
                f"{given.unique().tolist()} are not all labels of this model.",
                f"Labels go from 0 to {classes - 1}.",
            )
        return given.to(self.device)

    def _sampler(self, sampler: Sampler | None, steps: int | str) -> Sampler:
        """The sampler, checked against the kind of the model and the steps."""
        kind = self.config.kind
        chosen = sampler or SAMPLERS[kind][0]
        if chosen not in SAMPLERS[kind]:
            raise InvalidSetting(
                f"The sampler {chosen!r} does not fit a {kind!r} model.", f"Choose one of {SAMPLERS[kind]}."
            )
        if kind == "sit" and (not str(steps).isdigit() or int(steps) < 1):
            raise InvalidSetting(f"{steps!r} is no number of steps for {chosen!r}.", "Give 1 or more.")
        return chosen
