"""The diffusion of DiT: its noise schedule, its reverse steps, its training loss.

A picture x_0 is drowned in noise in 1000 steps, `x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps`, with variances
beta_t rising linearly from 1e-4 to 0.02 (Ho et al., NeurIPS 2020, arXiv 2006.11239). The network guesses eps. The
reverse step is a normal distribution whose mean follows from the guess and whose variance the network interpolates
(Nichol & Dhariwal, ICML 2021, arXiv 2102.09672):

    log variance = f log beta_t + (1 - f) log posterior variance_t       f = (v + 1) / 2, v half of the output

Fewer steps: some of the 1000 are kept, and their betas are rebuilt from the kept abar; the network is still told
the original step. Tables are float64; what is read from them is float32.

Legend: B pictures, C channels; `x`, `x0`, `noise`: [B, C, side, side]; `t`: int64 [B], an index into the kept steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from modicum.models.dit.respacing import STEPS, kept_steps

BETA_FIRST, BETA_LAST = 1e-4, 0.02
_PIXEL = 1 / 255  # half the distance of two grey levels in [-1, 1]

Schedule = Literal["linear", "cosine"]
Network = Callable[[Tensor, Tensor], Tensor]  # (noisy [B, C, ...], original steps [B]) -> [B, 2 C or C, ...]


@dataclass(frozen=True)
class Losses:
    """Losses per picture, float32 `[B]`.

    Attributes:
        mse: mean squared error of the noise.
        vb: term of the variational bound that teaches the variance, in bits per dimension; None if the variance
            is not learned.
    """

    mse: Tensor
    vb: Tensor | None

    @property
    def loss(self) -> Tensor:
        """What is minimised."""
        return self.mse if self.vb is None else self.mse + self.vb


@dataclass(frozen=True)
class Reverse:
    """The distribution of x_{t-1} that the network predicts.

    Attributes:
        mean: `[B, C, side, side]`.
        log_variance: broadcastable to it.
        x0: the picture that the network has in mind.
    """

    mean: Tensor
    log_variance: Tensor
    x0: Tensor


class GaussianDiffusion:
    """The diffusion with all 1000 steps, or with some of them.

    Args:
        steps: which steps are kept, in the notation of `respacing`; "" for all 1000.
        learn_sigma: whether the second half of the network's output is the variance; without it, the variance
            is beta_t.
        device: where the tables are held.
        schedule: "linear" is that of DiT; "cosine" (Nichol & Dhariwal) that of MAR.

    Attributes:
        timesteps: the kept steps, int64 `[K]`.
        betas, abar: their variances and cumulative products, float64 `[K]`.
    """

    def __init__(
        self,
        steps: str | int = "",
        learn_sigma: bool = True,
        device: torch.device | str = "cpu",
        schedule: Schedule = "linear",
    ) -> None:
        self.timesteps = kept_steps(str(steps)).to(device)
        self.learn_sigma = learn_sigma
        kept = torch.cumprod(1 - variances(schedule), 0).to(device)[self.timesteps]
        self.betas = 1 - kept / _before(kept)
        self.abar = torch.cumprod(1 - self.betas, 0)
        before = _before(self.abar)
        self.abar_before = before
        variance = self.betas * (1 - before) / (1 - self.abar)
        # The first one is zero; its logarithm is replaced by that of the second (nothing is drawn with it).
        first = variance[1:2] if len(self) > 1 else self.betas
        self.posterior_log_variance = torch.cat((first, variance[1:])).log()
        self.fixed_log_variance = torch.cat((first, self.betas[1:])).log()
        self.x0_weight = self.betas * before.sqrt() / (1 - self.abar)
        self.xt_weight = (1 - before) * (1 - self.betas).sqrt() / (1 - self.abar)

    def __len__(self) -> int:
        return len(self.timesteps)

    def original(self, t: Tensor) -> Tensor:
        """The step that the network is told, int64 `[B]`."""
        return self.timesteps.to(t.device)[t]

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The noisy picture x_t."""
        return _at(self.abar.sqrt(), t, x0) * x0 + _at((1 - self.abar).sqrt(), t, x0) * noise

    def x0_of(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The picture, if `noise` is what drowned it."""
        return _at((1 / self.abar).sqrt(), t, x) * x - _at((1 / self.abar - 1).sqrt(), t, x) * noise

    def noise_of(self, x: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """The noise that leads from the picture x0 to x_t."""
        return (_at((1 / self.abar).sqrt(), t, x) * x - x0) / _at((1 / self.abar - 1).sqrt(), t, x)

    def posterior(self, x0: Tensor, x: Tensor, t: Tensor) -> Reverse:
        """The true distribution of x_{t-1}, if the picture is known."""
        mean = _at(self.x0_weight, t, x) * x0 + _at(self.xt_weight, t, x) * x
        return Reverse(mean, _at(self.posterior_log_variance, t, x), x0)

    def reverse(self, output: Tensor, x: Tensor, t: Tensor, *, clip: bool = False) -> Reverse:
        """The distribution of x_{t-1} that a network's output stands for.

        Args:
            output: noise, then variance if it is learned, `[B, 2 C or C, side, side]`.
            x: the noisy picture.
            t: index into the kept steps.
            clip: limit the guessed picture to [-1, 1].
        """
        noise, log_variance = output.float(), _at(self.fixed_log_variance, t, x)
        if self.learn_sigma:
            noise, between = noise.chunk(2, dim=1)
            share = (between + 1) / 2
            low, high = _at(self.posterior_log_variance, t, x), _at(self.betas.log(), t, x)
            log_variance = share * high + (1 - share) * low
        x0 = self.x0_of(x, t, noise)
        x0 = x0.clamp(-1, 1) if clip else x0
        return Reverse(self.posterior(x0, x, t).mean, log_variance, x0)

    def ddpm_step(
        self, output: Tensor, x: Tensor, t: Tensor, noise: Tensor, *, clip: bool = False
    ) -> tuple[Tensor, Tensor]:
        """One ancestral step: x_{t-1}, drawn with `noise` (which t = 0 ignores), and the guessed picture."""
        reverse = self.reverse(output, x, t, clip=clip)
        spread = _unless_last(t, x) * (0.5 * reverse.log_variance).exp()
        return reverse.mean + spread * noise, reverse.x0

    def ddim_step(
        self, output: Tensor, x: Tensor, t: Tensor, noise: Tensor, eta: float = 0.0, *, clip: bool = False
    ) -> tuple[Tensor, Tensor]:
        """One step of DDIM (Song et al., ICLR 2021, arXiv 2010.02502), which draws nothing at `eta` 0."""
        x0 = self.reverse(output, x, t, clip=clip).x0
        abar, before = _at(self.abar, t, x), _at(self.abar_before, t, x)
        sigma = eta * ((1 - before) / (1 - abar)).sqrt() * (1 - abar / before).sqrt()
        direction = (1 - before - sigma**2).sqrt() * self.noise_of(x, t, x0)
        return before.sqrt() * x0 + direction + _unless_last(t, x) * sigma * noise, x0

    def losses(self, network: Network, x0: Tensor, t: Tensor, noise: Tensor) -> Losses:
        """The training losses of a batch.

        Args:
            network: called with the noisy pictures and the original steps.
            x0: pictures, latents or pixels in [-1, 1].
            t: index into the kept steps, of each picture.
            noise: standard normal.
        """
        x = self.q_sample(x0, t, noise)
        output = network(x, self.original(t))
        return self.losses_of(output, x0, x, t, noise)

    def losses_of(self, output: Tensor, x0: Tensor, x: Tensor, t: Tensor, noise: Tensor) -> Losses:
        """The training losses of what a network said of `x`, which is x_t of `x0` and `noise`."""
        output = output.float()
        if not self.learn_sigma:
            return Losses(_mean((output - noise) ** 2), None)
        guess, between = output.chunk(2, dim=1)
        # The bound teaches the variance alone: the mean has no gradient in it.
        reverse = self.reverse(torch.cat((guess.detach(), between), dim=1), x, t)
        return Losses(_mean((guess - noise) ** 2), self.bound(self.posterior(x0, x, t), reverse, x0, t))

    def bound(self, true: Reverse, guess: Reverse, x0: Tensor, t: Tensor) -> Tensor:
        """The bound's term of step t, bits per dimension `[B]`: a divergence; at t = 0 the likelihood of x0."""
        divergence = normal_divergence(true, guess)
        likelihood = -grey_log_likelihood(x0, guess.mean, 0.5 * guess.log_variance)
        return torch.where(t == 0, _mean(likelihood), _mean(divergence)) / math.log(2)


def variances(schedule: Schedule) -> Tensor:
    """The betas of all 1000 steps, float64."""
    if schedule == "linear":
        return torch.linspace(BETA_FIRST, BETA_LAST, STEPS, dtype=torch.float64)
    time = torch.arange(STEPS + 1, dtype=torch.float64) / STEPS
    abar = ((time + 0.008) / 1.008 * math.pi / 2).cos() ** 2
    return (1 - abar[1:] / abar[:-1]).clamp_max(0.999)


def normal_divergence(first: Reverse, second: Reverse) -> Tensor:
    """KL(first || second) of normal distributions, elementwise, in nats."""
    log_ratio = second.log_variance - first.log_variance
    distance = (first.mean - second.mean) ** 2 * (-second.log_variance).exp()
    return 0.5 * (log_ratio - 1 + (-log_ratio).exp() + distance)


def grey_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-probability of the grey level of `x` in [-1, 1] (256 of them) under a normal distribution, elementwise."""
    inverse = (-log_scale).exp()
    below, above = _cdf(inverse * (x - mean - _PIXEL)), _cdf(inverse * (x - mean + _PIXEL))
    inside = torch.where(x > 0.999, 1 - below, torch.where(x < -0.999, above, above - below))
    return inside.clamp_min(1e-12).log()


def _before(abar: Tensor) -> Tensor:
    """`abar_{t-1}`, which is 1 at the first step."""
    return torch.cat((abar.new_ones(1), abar[:-1]))


def _at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """float32 entries of a table for every picture, `[B, 1, 1, 1]`."""
    return table.to(t.device)[t].float().view(-1, *[1] * (like.dim() - 1))


def _unless_last(t: Tensor, like: Tensor) -> Tensor:
    return (t != 0).float().view(-1, *[1] * (like.dim() - 1))


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1)


def _cdf(x: Tensor) -> Tensor:
    """The cumulative normal distribution, in the approximation that was published."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
