from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modicum.errors import InvalidSetting
from modicum.models.dit import GaussianDiffusion, Reverse, denoise, seeded_noise
from modicum.models.dit.gaussian import grey_log_likelihood, normal_divergence, variances
from modicum.models.dit.respacing import kept_steps

SHAPE = (3, 8, 8)


def _normal(count: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def test_the_schedule_is_the_published_one() -> None:
    whole = GaussianDiffusion()
    torch.testing.assert_close(
        whole.betas, torch.from_numpy(np.linspace(1e-4, 0.02, 1000)), atol=1e-12, rtol=0
    )
    assert torch.equal(whole.timesteps, torch.arange(1000))
    torch.testing.assert_close(whole.abar, torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))))


def test_cosine_schedule() -> None:
    betas = variances("cosine")
    abar = torch.cumprod(1 - betas, 0)
    half_way = math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert abar[499].item() == pytest.approx(half_way)
    assert betas.max() == 0.999
    assert torch.equal(GaussianDiffusion(100, schedule="cosine").timesteps, kept_steps("100"))


def test_a_single_step_ends_at_the_guess() -> None:
    diffusion, x = GaussianDiffusion(1), _normal(2)
    output = _normal(2, 1, (6, 8, 8))
    drawn, guess = diffusion.ddpm_step(output, x, torch.zeros(2, dtype=torch.long), _normal(2, 2))
    torch.testing.assert_close(drawn, guess)


def test_taking_all_steps_changes_nothing() -> None:
    whole, same = GaussianDiffusion(), GaussianDiffusion("1000")
    for table in ("timesteps", "betas", "abar", "posterior_log_variance", "x0_weight", "xt_weight"):
        assert torch.equal(getattr(whole, table), getattr(same, table))


@given(st.integers(1, 1000))
@settings(max_examples=30, deadline=None)
def test_steps_are_spread_from_the_first_to_the_last(count: int) -> None:
    steps = kept_steps(str(count))
    assert len(steps) == count
    assert steps[0] == 0
    assert count == 1 or (steps[-1] == 999 and (steps.diff() > 0).all())
    spacing = 999 / max(count - 1, 1)
    even = torch.arange(count, dtype=torch.float64) * spacing
    assert (steps - even).abs().max() <= 0.5 + 1e-9


@pytest.mark.parametrize("count", [10, 50, 250])
def test_fewer_steps_keep_their_noise(count: int) -> None:
    """Respaced, a step is as noisy as the step of the thousand that it stands for."""
    few, whole = GaussianDiffusion(count), GaussianDiffusion()
    torch.testing.assert_close(few.abar, whole.abar[few.timesteps], atol=1e-12, rtol=1e-9)
    assert len(few) == count


def test_whole_strides_and_sections() -> None:
    assert torch.equal(kept_steps("ddim50"), torch.arange(0, 1000, 20))
    assert torch.equal(kept_steps("ddim250"), torch.arange(0, 1000, 4))
    sections = kept_steps("10,20")
    assert torch.equal(sections[:10], kept_steps_of_half(10))
    assert torch.equal(sections[10:], 500 + kept_steps_of_half(20))


def kept_steps_of_half(count: int) -> Tensor:
    return torch.tensor([round(i * 499 / (count - 1)) for i in range(count)])


@pytest.mark.parametrize("steps", ["1001", "0", "-3", "ddim300", "ddim0", "many", "600,10", "10,,10", "ddim"])
def test_steps_that_cannot_be_taken(steps: str) -> None:
    with pytest.raises(InvalidSetting, match="cannot be taken"):
        GaussianDiffusion(steps)


@given(st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_true_noise_gives_the_picture_back(step: int) -> None:
    diffusion, x0, noise = GaussianDiffusion(), _normal(2).clamp(-1, 1), _normal(2, 1)
    t = torch.full((2,), step)
    x = diffusion.q_sample(x0, t, noise)
    scale = 1 / diffusion.abar[step].sqrt().item()  # what rounding errors are multiplied by
    assert (diffusion.x0_of(x, t, noise) - x0).abs().max() < 1e-5 * max(scale, 1)
    assert (diffusion.noise_of(x, t, x0) - noise).abs().max() < 1e-3


def test_posterior_is_that_of_bayes() -> None:
    """p(x_{t-1} | x_t, x_0) is the product of p(x_t | x_{t-1}) and p(x_{t-1} | x_0), both normal."""
    diffusion, step = GaussianDiffusion(25), 12
    beta, before = diffusion.betas[step], diffusion.abar[step - 1]
    precision = (1 - beta) / beta + 1 / (1 - before)
    x0, x = torch.tensor([[[[0.3]]]]), torch.tensor([[[[-1.2]]]])
    mean = ((1 - beta).sqrt() * x.double() / beta + before.sqrt() * x0.double() / (1 - before)) / precision
    got = diffusion.posterior(x0, x, torch.tensor([step]))
    torch.testing.assert_close(got.mean.double(), mean, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(
        got.log_variance.double().flatten(), -precision.log()[None], atol=1e-5, rtol=1e-5
    )


def test_learned_variance_lies_between_its_limits() -> None:
    diffusion, x, t = GaussianDiffusion(), _normal(4), torch.tensor([0, 1, 500, 999])
    for value, table in ((-1.0, diffusion.posterior_log_variance), (1.0, diffusion.betas.log())):
        output = torch.cat((_normal(4, 1), torch.full_like(x, value)), dim=1)
        got = diffusion.reverse(output, x, t).log_variance
        torch.testing.assert_close(got[:, 0, 0, 0], table[t].float())
    assert diffusion.posterior_log_variance[0] == diffusion.posterior_log_variance[1]


def test_without_learned_variance_it_is_beta() -> None:
    diffusion, x, t = GaussianDiffusion(learn_sigma=False), _normal(2), torch.tensor([0, 700])
    got = diffusion.reverse(_normal(2, 1), x, t).log_variance.flatten()
    assert got[1] == diffusion.betas[700].log().float()
    assert got[0] == diffusion.posterior_log_variance[0].float()
    losses = diffusion.losses(lambda x, step: x * 0, x, t, _normal(2, 1))
    assert losses.vb is None
    torch.testing.assert_close(losses.loss, _normal(2, 1).square().flatten(1).mean(1))


def test_clipping_limits_the_guessed_picture() -> None:
    diffusion, x, t = GaussianDiffusion(), _normal(2) * 5, torch.tensor([300, 900])
    output = torch.zeros(2, 6, 8, 8)
    assert diffusion.reverse(output, x, t).x0.abs().max() > 1
    clipped = diffusion.reverse(output, x, t, clip=True)
    assert clipped.x0.abs().max() <= 1
    torch.testing.assert_close(clipped.mean, diffusion.posterior(clipped.x0, x, t).mean)


def test_a_perfect_guess_costs_nothing() -> None:
    diffusion, x0, noise = GaussianDiffusion(), _normal(3).clamp(-1, 1), _normal(3, 1)
    perfect = torch.cat((noise, torch.full_like(noise, -1.0)), dim=1)
    losses = diffusion.losses(lambda x, step: perfect, x0, torch.tensor([1, 400, 999]), noise)
    assert losses.mse.max() == 0
    assert losses.vb is not None
    assert losses.vb.abs().max() < 1e-4


def test_the_bound_teaches_the_variance_alone() -> None:
    diffusion, noise = GaussianDiffusion(), _normal(3, 1)
    output = _normal(3, 2, (6, 8, 8)).requires_grad_()
    losses = diffusion.losses(lambda x, step: output, _normal(3), torch.tensor([0, 5, 600]), noise)
    assert losses.vb is not None
    (gradient,) = torch.autograd.grad(losses.vb.sum(), output, retain_graph=True)
    assert gradient[:, :3].abs().max() == 0
    assert (gradient[:, 3:].flatten(1).abs().amax(1) > 0).all()
    (gradient,) = torch.autograd.grad(losses.mse.sum(), output)
    assert gradient[:, 3:].abs().max() == 0


@given(st.floats(-1, 1), st.floats(-3, 1))
@settings(max_examples=20, deadline=None)
def test_grey_levels_have_probability_one_together(mean: float, log_scale: float) -> None:
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    mean_, log_scale_ = torch.tensor(mean).double(), torch.tensor(log_scale).double()
    assert grey_log_likelihood(levels, mean_, log_scale_).exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_divergence_of_normal_distributions() -> None:
    def normal(mean: float, log_variance: float) -> Reverse:
        return Reverse(torch.tensor([mean]), torch.tensor([log_variance]), torch.tensor([0.0]))

    first, second = normal(0.5, 0.2), normal(-1.0, -0.7)
    torch_first, torch_second = (
        torch.distributions.Normal(each.mean, (0.5 * each.log_variance).exp()) for each in (first, second)
    )
    want = torch.distributions.kl_divergence(torch_first, torch_second)
    torch.testing.assert_close(normal_divergence(first, second), want)
    assert normal_divergence(first, first).item() == 0


def test_the_network_is_told_the_original_steps_from_the_noisiest_on() -> None:
    diffusion, told, drawn = GaussianDiffusion(7), [], []

    def network(x: Tensor, t: Tensor) -> Tensor:
        told.append(t.tolist())
        return torch.zeros(2, 6, 8, 8)

    def noise(index: int, like: Tensor) -> Tensor:
        drawn.append(index)
        return torch.zeros_like(like)

    steps = list(denoise(diffusion, network, _normal(2), noise))
    assert told == [[step] * 2 for step in reversed(diffusion.timesteps.tolist())]
    assert drawn == list(range(7))
    assert [step.done for step in steps] == [(i + 1) / 7 for i in range(7)]


@pytest.mark.parametrize("eta", [None, 0.0, 0.7])
def test_who_knows_the_picture_arrives_there(eta: float | None) -> None:
    diffusion, target = GaussianDiffusion(20), _normal(2).clamp(-1, 1)

    def network(x: Tensor, step: Tensor) -> Tensor:
        t = torch.searchsorted(diffusion.timesteps, step)
        return torch.cat((diffusion.noise_of(x, t, target), torch.zeros_like(x)), dim=1)

    *_, last = denoise(diffusion, network, _normal(2, 1), lambda k, x: _normal(2, 2 + k), eta=eta)
    torch.testing.assert_close(last.x, target, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("eta", "steps"), [(None, 250), (0.0, 100), (1.0, 250)])
def test_normal_data_are_drawn_with_their_mean_and_spread(eta: float | None, steps: int) -> None:
    mean, spread, diffusion = 0.6, 0.3, GaussianDiffusion(steps)

    def network(x: Tensor, step: Tensor) -> Tensor:
        abar = GaussianDiffusion().abar[step[0]]
        share = (1 - abar).sqrt() / (abar * spread**2 + 1 - abar)
        return torch.cat((share.float() * (x - abar.sqrt().float() * mean), -torch.ones_like(x)), dim=1)

    x = _normal(40, 3, (1, 16, 16))
    noise = seeded_noise([torch.Generator().manual_seed(4)])
    *_, last = denoise(diffusion, network, x, noise, eta=eta)
    assert last.x.mean().item() == pytest.approx(mean, abs=0.015)
    assert last.x.std().item() == pytest.approx(spread, rel=0.05)


def test_one_stream_per_picture() -> None:
    def streams() -> list[Any]:
        return [torch.Generator().manual_seed(seed) for seed in (5, 6)]

    like = torch.empty(2, 3, 4, 4)
    both = seeded_noise(streams())
    first, second = both(0, like), both(1, like)
    alone = seeded_noise(streams()[1:])
    assert torch.equal(alone(0, like[:1])[0], first[1])
    assert torch.equal(alone(1, like[:1])[0], second[1])
    assert not torch.equal(first, second)


def test_the_bound_is_in_bits() -> None:
    diffusion = GaussianDiffusion()
    true = Reverse(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    off = Reverse(torch.full((1, 1, 2, 2), 2.0), torch.zeros(1, 1, 2, 2), true.x0)
    got = diffusion.bound(true, off, true.x0, torch.tensor([3]))
    assert got.item() == pytest.approx(2.0 / math.log(2))
