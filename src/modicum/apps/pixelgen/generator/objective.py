"""The loss of the generator: how far its velocity is from the true one, over everything that has to be painted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modicum.apps.pixelgen.generator.canvas import Known
from modicum.apps.pixelgen.generator.colour import luma
from modicum.apps.pixelgen.generator.diffusion import noisy, velocity
from modicum.apps.pixelgen.generator.missing import arrived
from modicum.apps.pixelgen.generator.network import GeneratorConfig
from modicum.apps.pixelgen.generator.scene import scene_tokens
from modicum.trainer.objective import Objective, Question
from modicum.trainer.sources import Batch

FORGOTTEN = 0.1  # share of single readings that training leaves out


class Painting(Objective):
    """Pictures of which a radio lost something and a camera the colour are painted back.

    Args:
        config: of the network.
    """

    needs = ("pictures",)

    def __init__(self, config: GeneratorConfig) -> None:
        self.dropout = config.class_dropout_prob

    def ask(self, batch: Batch, generator: torch.Generator, training: bool = True) -> Question:
        """Noisy states of pictures, uint8 `[B, 3, side, side]`, each with gaps and at a time of its own.

        Times are spread evenly over the batch: the same expectation as if each were drawn alone, with less noise.
        """

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=device)

        pictures, device = batch["pictures"] / 255, batch["pictures"].device
        count = len(pictures)
        known = Known.of(luma(pictures), arrived(count, pictures.shape[-1], generator))
        x0 = known.state(pictures)
        noise = torch.randn(x0.shape, generator=generator, device=device) * known.unknown
        t = (torch.arange(count, device=device) + uniform(count)) / count
        tokens, forgotten = scene_tokens(pictures), FORGOTTEN if training else 0
        return {
            "x": torch.cat((noisy(x0, noise, t), known.channels), dim=1),
            "t": t,
            "tokens": tokens.masked_fill(uniform(*tokens.shape) < forgotten, 0),
            "drop": uniform(count) < (self.dropout if training else 0),
            "unknown": known.unknown,
            "velocity": velocity(x0, noise, t),
        }

    def answer(self, network: nn.Module, question: Question) -> Tensor:
        """Velocity, `[B, 6, h, w]`."""
        return network(question["x"], question["t"], question["tokens"], question["drop"])

    def loss(self, output: Tensor, question: Question) -> Tensor:
        """Mean squared error of what is painted."""
        return _mean_square(output - question["velocity"], question["unknown"])

    def divergence(self, output: Tensor, teacher: Tensor, question: Question) -> Tensor:
        """Mean squared distance to the teacher's velocity, likewise."""
        return _mean_square(output - teacher, question["unknown"])


def _mean_square(difference: Tensor, unknown: Tensor) -> Tensor:
    """Mean of the squares where `unknown` is 1, float32 `[B]`."""
    squares = (difference.float().square() * unknown).flatten(1).sum(1)
    return squares / unknown.flatten(1).sum(1)
