"""A stack of residual MLP blocks in which some blocks are planted to be redundant, and small diffusion transformers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modicum.data.samples import Table
from modicum.method import Context
from modicum.models import Family, register
from modicum.models.depth import Groups, spans
from modicum.models.dit import DiT, DiTConfig
from modicum.trainer.objective import Objective, Question
from modicum.trainer.sources import Batch

WIDTH = 32

register(
    Family(
        name="planted",
        model_types=("planted",),
        blocks=("blocks",),
        roles={"first": "fc1", "second": "fc2"},
    )
)


class Residual(nn.Module):
    """x + second(gelu(first(x))), random; or x, exactly."""

    def __init__(self, identity: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        if identity:
            nn.init.zeros_(self.second.weight)
            nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(nn.functional.gelu(self.first(x)))


class Planted(nn.Module):
    """A stack in which `important` blocks compute and all others are identities."""

    def __init__(self, depth: int, important: list[int]) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="planted", num_hidden_layers=depth)
        self.blocks = nn.ModuleList(Residual(index not in important) for index in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Regression(Objective):
    """Squared error to what the whole model computed."""

    needs = ("x", "target")

    def ask(self, batch: Batch, generator: torch.Generator, training: bool = True) -> Question:
        return batch

    def answer(self, network: nn.Module, question: Question) -> Tensor:
        return network(question["x"])

    def loss(self, output: Tensor, question: Question) -> Tensor:
        return (output - question["target"]).square().mean(1)

    def divergence(self, output: Tensor, teacher: Tensor, question: Question) -> Tensor:
        return (output - teacher).square().mean(1)


@dataclass
class Puzzle:
    """A planted stack, what must be found in it, and the context to find it."""

    model: Planted
    important: list[int]
    context: Context


def puzzle(groups: Groups, seed: int, **context: Any) -> Puzzle:
    generator = torch.Generator().manual_seed(seed)
    important = [
        block
        for span, (keep, of) in zip(spans(groups), groups, strict=True)
        for block in sorted(span[int(i)] for i in torch.randperm(of, generator=generator)[:keep])
    ]
    torch.manual_seed(seed)
    model = Planted(sum(of for _, of in groups), important).eval()
    x = torch.randn(2048, WIDTH, generator=generator)
    with torch.no_grad():
        data = Table({"x": x, "target": model(x)})
    return Puzzle(model, important, Context(generator, data=data, objective=Regression(), **context))


SIZES = DiTConfig(input_size=4, patch_size=2, hidden_size=32, depth=4, num_heads=2, num_classes=3)


def small_dit(**sizes: Any) -> DiT:
    torch.manual_seed(0)
    model = DiT(SIZES.model_copy(update=sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def dit_data(rows: int = 64) -> Table:
    generator = torch.Generator().manual_seed(1)
    return Table(
        {
            "x0": torch.randn(rows, 4, 4, 4, generator=generator),
            "y": torch.randint(3, (rows,), generator=generator),
        }
    )


@pytest.fixture(scope="session")
def bench() -> Any:
    """The functions and classes of this file."""
    return sys.modules[__name__]
