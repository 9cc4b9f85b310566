"""The flow of SiT: a straight line from noise to data, and the ways to follow it.

At time t in [0, 1] a picture is `x_t = t x_1 + (1 - t) x_0`, x_0 noise, x_1 DATA; the network guesses the velocity
`v = x_1 - x_0`. Following v from t = 0 to 1 turns noise into a picture (an ordinary differential equation). The same
distributions are visited by a stochastic one, whose noise washes out the errors of earlier steps:

    dx = (v + w score) dt + sqrt(2 w) dW        score = (t v - x) / (1 - t),   w = 1 - t

Ma et al., SiT, ECCV 2024, arXiv 2401.08740. `dopri5` chooses the steps of every picture by itself (Dormand & Prince,
1980), so that a picture does not depend on those computed beside it; the published sampler shares them.

Legend: B pictures; `x`: [B, C, side, side], float32; `t`: float32 [B].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from modicum.errors import InvalidSetting
from modicum.models.dit.sampling import DrawNoise, SamplingStep

Velocity = Callable[[Tensor, Tensor], Tensor]
Solver = Literal["euler", "heun", "dopri5"]
LAST_STEP = 0.04  # of the stochastic sampler, where 1 / (1 - t) grows too fast to be followed
ATOL, RTOL = 1e-6, 1e-3
MOST_STEPS = 1000  # tried steps of dopri5 per picture

# Dormand-Prince: stage times, weights of earlier stages, and what the 5th order differs from the 4th by.
_TIMES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def between(noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
    """x_t on the line from noise to data."""
    t = _wide(t, data)
    return t * data + (1 - t) * noise


def velocity_loss(velocity: Velocity, data: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the velocity, float32 `[B]`.

    Args:
        velocity: the network.
        data: latents, or pixels in [-1, 1].
        t: uniform in [0, 1].
        noise: standard normal.
    """
    guess = velocity(between(noise, data, t), t).float()
    return (guess - (data - noise)).square().flatten(1).mean(1)


def score(v: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Gradient of the log-density of x_t, out of the velocity there."""
    t = _wide(t, x)
    return (t * v - x) / (1 - t)


def follow(velocity: Velocity, x: Tensor, solver: Solver, steps: int) -> Iterator[SamplingStep]:
    """The ordinary differential equation from noise `x` at t = 0 to data at t = 1.

    Args:
        velocity: the network.
        x: noise.
        solver: "euler" (one pass per step), "heun" (two), or "dopri5" (six, with steps of its own).
        steps: equal steps of the first two.

    Raises:
        InvalidSetting: dopri5 does not arrive within `MOST_STEPS` steps.
    """
    if solver == "dopri5":
        yield from _adaptive(velocity, x)
        return
    for index in range(steps):
        t, dt = torch.full((len(x),), index / steps, device=x.device), 1 / steps
        v = velocity(x, t).float()
        guess = x + (1 - index / steps) * v
        if solver == "heun":
            v = (v + velocity(x + dt * v, t + dt).float()) / 2
        x = x + dt * v
        yield SamplingStep((index + 1) / steps, x, guess)


def diffuse(velocity: Velocity, x: Tensor, steps: int, noise: DrawNoise) -> Iterator[SamplingStep]:
    """The stochastic differential equation by Euler-Maruyama; the last step is long and without noise.

    Args:
        velocity: the network.
        x: noise.
        steps: passes of the network: `steps - 1` equal steps to t = 0.96, and the last.
        noise: draws the noise of a step.
    """
    dt = (1 - LAST_STEP) / max(steps - 1, 1)
    for index in range(steps):
        time = (1 - LAST_STEP) * index / max(steps - 1, 1)
        t = torch.full((len(x),), time, device=x.device)
        v = velocity(x, t).float()
        drift, guess = v + (1 - time) * score(v, x, t), x + (1 - time) * v
        if index == steps - 1:
            x = x + (1 - time) * drift
        else:
            x = x + dt * drift + (2 * (1 - time) * dt) ** 0.5 * noise(index, x)
        yield SamplingStep((index + 1) / steps, x, guess)


def _adaptive(velocity: Velocity, x: Tensor) -> Iterator[SamplingStep]:
    """Dormand-Prince 5(4) with a step size per picture; finished pictures stand still (their step is 0)."""
    t = torch.zeros(len(x), device=x.device)
    h = torch.full_like(t, 0.05)
    slope = velocity(x, t).float()
    for _ in range(MOST_STEPS):
        h = torch.minimum(h, 1 - t)
        arrived, error, last_slope = _dormand_prince(velocity, x, t, h, slope)
        accepted = error <= 1
        wide = _wide(accepted, x)
        x, slope = torch.where(wide, arrived, x), torch.where(wide, last_slope, slope)
        t = torch.where(accepted, t + h, t)
        h = h * (0.9 * error.clamp_min(1e-10) ** -0.2).clamp(0.2, 10).where(h > 0, 1.0)
        done = t.min().item()  # the one value per step that the host has to know
        yield SamplingStep(done, x, x + _wide(1 - t, x) * slope)
        if done >= 1 - 1e-6:
            return
    raise InvalidSetting(
        f"dopri5 did not arrive within {MOST_STEPS} steps.",
        "Choose the solver 'heun', which takes equal steps.",
    )


def _dormand_prince(
    velocity: Velocity, x: Tensor, t: Tensor, h: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One step: the new x, its error over the tolerance `[B]` (root mean square), and the slope there."""
    slopes, step, arrived = [slope], _wide(h, x), x
    for time, weights in zip(_TIMES[1:], _STAGES, strict=True):
        arrived = x + step * sum(w * k for w, k in zip(weights, slopes, strict=True))
        slopes.append(velocity(arrived, t + time * h).float())
    error = step * sum(w * k for w, k in zip(_ERROR, slopes, strict=True))
    tolerance = ATOL + RTOL * torch.maximum(x.abs(), arrived.abs())
    return arrived, (error / tolerance).square().flatten(1).mean(1).sqrt(), slopes[-1]


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """`[B]` as `[B, 1, 1, 1]`."""
    return values.view(-1, *[1] * (like.dim() - 1))
