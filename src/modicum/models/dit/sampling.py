"""From noise to a picture, step by step: the loop around the reverse steps of the diffusion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from modicum.models.dit.gaussian import GaussianDiffusion, Network

DrawNoise = Callable[[int, Tensor], Tensor]  # (step from 0, the picture [B, ...]) -> noise like it


@dataclass(frozen=True)
class SamplingStep:
    """What is there after one step.

    Attributes:
        done: share of the way, 1 after the last step.
        x: the picture so far, `[B, C, side, side]`.
        x0: the picture that the network had in mind.
    """

    done: float
    x: Tensor
    x0: Tensor


def seeded_noise(streams: list[torch.Generator] | None) -> DrawNoise:
    """Standard normal noise out of one stream for all pictures, or one stream per picture."""

    def draw(step: int, like: Tensor) -> Tensor:
        if streams is None or len(streams) == 1:
            source = streams[0] if streams else None
            return torch.randn(like.shape, generator=source, device=like.device)
        return torch.stack(
            [torch.randn(like.shape[1:], generator=source, device=like.device) for source in streams]
        )

    return draw


def denoise(
    diffusion: GaussianDiffusion,
    network: Network,
    x: Tensor,
    noise: DrawNoise,
    *,
    eta: float | None = None,
    clip: bool = False,
) -> Iterator[SamplingStep]:
    """Run the diffusion backwards.

    Args:
        diffusion: which steps.
        network: called with the noisy pictures and the original step.
        x: noise `[B, C, side, side]`.
        noise: draws the noise of a step; step 0 is the noisiest.
        eta: share of noise in DDIM; None: ancestral sampling (DDPM).
        clip: limit the guessed picture to [-1, 1].
    """
    for index, step in enumerate(reversed(range(len(diffusion)))):
        t = torch.full((len(x),), step, device=x.device)
        output = network(x, diffusion.original(t))
        drawn = noise(index, x)
        if eta is None:
            x, x0 = diffusion.ddpm_step(output, x, t, drawn, clip=clip)
        else:
            x, x0 = diffusion.ddim_step(output, x, t, drawn, eta, clip=clip)
        yield SamplingStep((index + 1) / len(diffusion), x, x0)
