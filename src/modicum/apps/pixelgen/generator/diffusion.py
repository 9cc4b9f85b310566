"""The diffusion of the generator: an angle from picture to noise, and the velocity along it.

With variance preserved, noising is a rotation in the plane of picture and noise (Salimans & Ho, ICLR 2022,
arXiv 2202.00512):

    x = cos(a) x0 + sin(a) noise          v = dx/da = cos(a) noise - sin(a) x0          a = t pi / 2, t in [0, 1]
    x0 = cos(a) x - sin(a) v              noise = sin(a) x + cos(a) v

At t = 1 nothing of the picture is left in x, and the best v is minus the mean of all pictures that fit: the network
answers even the first, hardest question sensibly. That is why few steps are enough, and why every squared error of v
counts the same here; the usual weight (min-SNR) takes the questions near t = 1 out of the loss.

DDIM (Song et al., ICLR 2021, arXiv 2010.02502) turns x back by a smaller angle at a time; a single step paints the
mean itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]  # (state [B, ...], t [B]) -> v [B, ...]


def noisy(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The state at times `[B]`."""
    cos, sin = _angle(t, x0)
    return cos * x0 + sin * noise


def velocity(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What the network should say of that state."""
    cos, sin = _angle(t, x0)
    return cos * noise - sin * x0


def paint(network: Velocity, noise: Tensor, steps: int) -> Tensor:
    """From noise to a state without noise, by DDIM in `steps` equal angles.

    Args:
        network: what says the velocity.
        noise: the state at t = 1, `[B, ...]`; scaled down, it paints pictures that lie closer to their mean.
        steps: passes of the network.
    """
    x = noise
    for step in range(steps):
        t = torch.full((len(x),), 1 - step / steps, device=x.device)
        v = network(x, t)
        cos, sin = _angle(t, x)
        x0, residual = cos * x - sin * v, sin * x + cos * v
        x = noisy(x0, residual, t - 1 / steps)
    return x


def _angle(t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine, `[B, 1, 1, 1]`."""
    angle = (t * math.pi / 2).view(-1, *[1] * (like.dim() - 1))
    return angle.cos(), angle.sin()
