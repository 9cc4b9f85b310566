from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modicum.errors import InvalidSetting
from modicum.models.dit.interpolant import between, diffuse, follow, score, velocity_loss
from modicum.models.dit.sampling import seeded_noise

MEAN, SPREAD = 0.6, 0.5


def _wide(t: Tensor) -> Tensor:
    return t.view(-1, 1, 1, 1)


def exact_velocity(x: Tensor, t: Tensor) -> Tensor:
    """E[x_1 - x_0 | x_t] for independent normal data of mean `MEAN` and spread `SPREAD`."""
    t = _wide(t)
    rest = (x - t * MEAN) / (t**2 * SPREAD**2 + (1 - t) ** 2)
    return MEAN + t * SPREAD**2 * rest - (1 - t) * rest


def _noise(count: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def _end(solver: str, steps: int = 100, count: int = 16) -> Tensor:
    *_, last = follow(exact_velocity, _noise(count), solver, steps)  # type: ignore[arg-type]
    assert last.done == pytest.approx(1)
    return last.x


@pytest.mark.parametrize(("steps", "error"), [(100, 0.02), (200, 0.01)])
def test_euler_reaches_mean_and_spread(steps: int, error: float) -> None:
    x, noise = _end("euler", steps, 64), _noise(64)
    assert x.mean().item() == pytest.approx(MEAN + SPREAD * noise.mean().item(), rel=0.01)
    assert x.std().item() == pytest.approx(SPREAD * noise.std().item(), rel=error)


def test_each_solver_follows_the_flow_better_than_the_last() -> None:
    arrived = MEAN + SPREAD * _noise()  # where the exact flow takes every single number
    errors = [(_end(solver, 40) - arrived).abs().max().item() for solver in ("euler", "heun", "dopri5")]
    assert errors[0] > 2 * errors[1]
    assert errors[1] < 0.01
    assert errors[2] < 2e-3


def test_more_steps_come_closer() -> None:
    arrived = MEAN + SPREAD * _noise()
    few, many = ((_end("heun", steps) - arrived).abs().max().item() for steps in (10, 40))
    assert many < few / 8  # second order: a sixteenth, up to higher orders


def test_adaptive_steps_do_not_depend_on_neighbours() -> None:
    harder = _noise() * torch.linspace(0.1, 20, 16).view(-1, 1, 1, 1)
    *_, together = follow(exact_velocity, harder, "dopri5", 1)
    for index in (0, 9, 15):
        *_, alone = follow(exact_velocity, harder[index : index + 1], "dopri5", 1)
        assert torch.equal(alone.x[0], together.x[index])


def test_adaptive_steps_come_to_an_end() -> None:
    with pytest.raises(InvalidSetting, match="did not arrive"):
        list(follow(lambda x, t: torch.full_like(x, torch.nan), torch.zeros(1, 1, 1, 1), "dopri5", 1))


def test_the_last_step_of_the_flow_ends_at_the_guess() -> None:
    steps = list(follow(exact_velocity, _noise(), "euler", 5))
    torch.testing.assert_close(steps[-1].x, steps[-1].x0)
    assert [step.done for step in steps] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_the_stochastic_sampler_reaches_mean_and_spread() -> None:
    noise = seeded_noise([torch.Generator().manual_seed(1)])
    steps = list(diffuse(exact_velocity, _noise(64), 250, noise))
    assert len(steps) == 250
    assert steps[-1].x.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert steps[-1].x.std().item() == pytest.approx(SPREAD, rel=0.04)


def test_the_stochastic_sampler_draws_noise_in_all_steps_but_the_last() -> None:
    drawn, times = [], []

    def noise(index: int, like: Tensor) -> Tensor:
        drawn.append(index)
        return torch.zeros_like(like)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        times.append(t[0].item())
        return exact_velocity(x, t)

    list(diffuse(velocity, _noise(2), 5, noise))
    assert drawn == [0, 1, 2, 3]
    assert times == pytest.approx([0, 0.24, 0.48, 0.72, 0.96])


@pytest.mark.parametrize("time", [0.0, 0.3, 0.96])
def test_score_is_the_slope_of_the_log_density(time: float) -> None:
    x, t = _noise(2).double(), torch.full((2,), time).double()
    variance = time**2 * SPREAD**2 + (1 - time) ** 2
    want = -(x - time * MEAN) / variance
    torch.testing.assert_close(score(exact_velocity(x, t), x, t), want, atol=1e-5, rtol=1e-5)


def test_the_line_goes_from_noise_to_data() -> None:
    noise, data = _noise(3, 1), _noise(3, 2)
    line = between(noise, data, torch.tensor([0.0, 0.25, 1.0]))
    assert torch.equal(line[0], noise[0])
    assert torch.equal(line[2], data[2])
    torch.testing.assert_close(line[1], 0.75 * noise[1] + 0.25 * data[1])


def test_velocity_loss() -> None:
    noise, data, t = _noise(3, 1), _noise(3, 2), torch.rand(3)
    assert velocity_loss(lambda x, t: data - noise, data, t, noise).max() == 0
    off = velocity_loss(
        lambda x, t: data - noise + torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1, 1), data, t, noise
    )
    torch.testing.assert_close(off, torch.tensor([0.0, 1.0, 4.0]))
