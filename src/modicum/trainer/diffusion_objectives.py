"""The losses of models that draw: the noise of a step, the velocity of a path, the hidden tokens of a picture."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from modicum.models.dit import DiTConfig, GaussianDiffusion
from modicum.models.dit.interpolant import between
from modicum.models.mar import MARConfig
from modicum.models.mar.training import hide
from modicum.models.mar.transformer import taken
from modicum.trainer.objective import Objective, Question
from modicum.trainer.sources import Batch


class NoisePrediction(Objective):
    """DiT: squared error of the noise, and the bound that teaches the variance (see `GaussianDiffusion`)."""

    needs = ("x0", "y")

    def __init__(self, config: DiTConfig) -> None:
        self.dropout = config.class_dropout_prob
        self.diffusion = cache(lambda device: GaussianDiffusion("", config.learn_sigma, device))

    def ask(self, batch: Batch, generator: torch.Generator, training: bool = True) -> Question:
        """Noisy pictures at steps drawn evenly; some labels dropped."""
        x0, device = batch["x0"], batch["x0"].device
        t = torch.randint(len(self.diffusion(device)), (len(x0),), generator=generator, device=device)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        drop = torch.rand(len(x0), generator=generator, device=device) < (self.dropout if training else 0)
        return self.question(x0, batch["y"], t, noise, drop)

    def question(self, x0: Tensor, y: Tensor, t: Tensor, noise: Tensor, drop: Tensor) -> Question:
        """The question of given steps `[B]`, noise and dropped labels (bool `[B]`)."""
        x = self.diffusion(x0.device).q_sample(x0, t, noise)
        return {"x": x, "x0": x0, "y": y, "t": t, "noise": noise, "drop": drop}

    def answer(self, network: nn.Module, question: Question) -> Tensor:
        """Noise and variance, `[B, 2 C, side, side]`."""
        return network(question["x"], question["t"], question["y"], question["drop"])

    def loss(self, output: Tensor, question: Question) -> Tensor:
        """mse + bound."""
        q = question
        return self.diffusion(output.device).losses_of(output, q["x0"], q["x"], q["t"], q["noise"]).loss

    def divergence(self, output: Tensor, teacher: Tensor, question: Question) -> Tensor:
        """mse to the teacher's noise, and the divergence of the reverse step from the teacher's."""
        diffusion = self.diffusion(output.device)
        output, teacher = output.float(), teacher.float()
        if not diffusion.learn_sigma:
            return _mean((output - teacher) ** 2)
        noise, aim = output.chunk(2, dim=1)[0], teacher.chunk(2, dim=1)[0]
        return _mean((noise - aim) ** 2) + self.reverse_divergence(output, teacher, question)

    def reverse_divergence(self, output: Tensor, teacher: Tensor, question: Question) -> Tensor:
        """KL of p(x_{t-1} | x_t) from the teacher's to the output's, bits per dimension `[B]`.

        The output's mean has no gradient in it, so that it teaches the variance alone. At t = 0 the likelihood of the
        data takes its place, as in the model's own loss.
        """
        diffusion, x, t = self.diffusion(output.device), question["x"], question["t"]
        noise, variance = output.chunk(2, dim=1)
        own = diffusion.reverse(torch.cat((noise.detach(), variance), dim=1), x, t)
        return diffusion.bound(diffusion.reverse(teacher, x, t), own, question["x0"], t)


class VelocityPrediction(Objective):
    """SiT: squared error of the velocity on the straight line from noise to data."""

    needs = ("x0", "y")
    state_weight = 2e-4  # as published

    def __init__(self, config: DiTConfig) -> None:
        self.dropout = config.class_dropout_prob

    def ask(self, batch: Batch, generator: torch.Generator, training: bool = True) -> Question:
        """Points at times drawn evenly; some labels dropped."""
        x0, y = batch["x0"], batch["y"]
        t = torch.rand(len(x0), generator=generator, device=x0.device)
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        drop = torch.rand(len(x0), generator=generator, device=x0.device) < (self.dropout if training else 0)
        return {"x": between(noise, x0, t), "t": t, "y": y, "drop": drop, "velocity": x0 - noise}

    def answer(self, network: nn.Module, question: Question) -> Tensor:
        """Velocity, `[B, C, side, side]`."""
        return network(question["x"], question["t"], question["y"], question["drop"])

    def loss(self, output: Tensor, question: Question) -> Tensor:
        """Mean squared error."""
        return _mean((output.float() - question["velocity"]) ** 2)

    def divergence(self, output: Tensor, teacher: Tensor, question: Question) -> Tensor:
        """Mean squared error to the teacher's velocity."""
        return _mean((output.float() - teacher.float()) ** 2)


class MaskedTokens(NoisePrediction):
    """MAR: the loss of DiT, of the hidden tokens of a picture, each at several steps (see `modicum.models.mar`)."""

    def __init__(self, config: MARConfig) -> None:
        self.config = config
        self.diffusion = cache(lambda device: GaussianDiffusion(device=device, schedule="cosine"))

    def ask(self, batch: Batch, generator: torch.Generator, training: bool = True) -> Question:
        """Pictures as tokens, which of them are hidden, and those drowned in noise; some labels dropped (-1)."""
        return hide(self.config, batch["x0"], batch["y"], generator, training)

    def answer(self, network: nn.Module, question: Question) -> Tensor:
        """Noise and variance of the hidden tokens, `[B, copies, hidden, 2 C]`."""
        return network(*(question[name] for name in ("tokens", "visible", "y", "hidden", "x", "t")))

    def loss(self, output: Tensor, question: Question) -> Tensor:
        """mse + bound, mean over the hidden tokens."""
        return _by_picture(super().loss(output.flatten(0, 2), _by_token(question)), output)

    def divergence(self, output: Tensor, teacher: Tensor, question: Question) -> Tensor:
        """That of DiT, mean over the hidden tokens."""
        taught = super().divergence(output.flatten(0, 2), teacher.flatten(0, 2), _by_token(question))
        return _by_picture(taught, output)


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1)


def _by_token(question: Question) -> Question:
    """A question about hidden tokens with the tokens of all pictures as samples: `[B, copies, hidden, C] -> [N, C]`."""
    x0 = taken(question["tokens"], question["hidden"])[:, None].expand_as(question["x"])
    wanted = {"x0": x0, "x": question["x"], "noise": question["noise"], "t": question["t"]}
    return {name: value.flatten(0, 2) for name, value in wanted.items()}


def _by_picture(values: Tensor, output: Tensor) -> Tensor:
    """Mean over the tokens of every picture, `[N] -> [B]`."""
    return values.view(len(output), -1).mean(1)
