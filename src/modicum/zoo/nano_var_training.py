"""What the parts of nano-var's training share: sizes, budget, and the files of the work directory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modicum.models.var import VAEConfig, VARConfig
from modicum.zoo.loop import Budget, Loop

Loss = Callable[[int, float], Tensor]
Part = Literal["autoencoder", "quantizer", "transformer"]
SHARES: dict[Part, float] = {"autoencoder": 0.12, "quantizer": 0.08, "transformer": 0.8}  # of the budget


def _config() -> VARConfig:
    vae = VAEConfig(vocab_size=128, z_channels=8, ch=16, ch_mult=(1, 2), num_res_blocks=1, groupnorm_groups=8)
    return VARConfig(
        num_classes=10,
        depth=6,
        embed_dim=128,
        num_heads=4,
        patch_nums=(1, 2, 3, 4, 6, 8, 12, 16),
        vae=vae,
    )


@dataclass(frozen=True)
class NanoVar:
    """Sizes of the model and of its training. The defaults are those of the shipped model."""

    config: VARConfig = field(default_factory=_config)
    image_batch: int = 32  # images per step of the first two parts
    batch: int = 16  # images per step of the transformer; half as many where it sees all maps
    lr_images: float = 2e-3
    lr: float = 1.5e-3
    versions: int = 8  # jittered copies of the training digits
    digits: int | None = None  # of the training digits; None: all
    drawn_per_class: int = 50  # for the figures on the card


@dataclass(frozen=True)
class Training:
    """One training of nano-var.

    Attributes:
        work: directory of the finished parts and the checkpoints.
        budget: of all parts together.
        seed: of everything random.
        report: receives lines of progress.
        sizes: of the model and its training.
    """

    work: Path
    budget: Budget
    seed: int
    report: Callable[[str], None]
    sizes: NanoVar

    def run(self, part: Part, model: nn.Module, loss_at: Loss, lr: float) -> Loop:
        """Train a part to the end of its share of the budget, from its checkpoint if there is one."""
        share, budget = SHARES[part], self.budget
        own = (
            Budget(steps=max(round(budget.steps * share), 1))
            if budget.steps
            else Budget(minutes=cast("float", budget.minutes) * share)
        )
        plain = {name: value for name, value in vars(self.sizes).items() if name != "config"}
        identity = {"recipe": "nano-var", "part": part, **asdict(own), "seed": self.seed, **plain}
        text = json.dumps({**identity, "config": self.sizes.config.to_dict()})
        loop = Loop(
            model, loss_at, own, text, self.work / part, lr, warmup=100,
            report=lambda line: self.report(f"{part}: {line}"),
        )  # fmt: skip
        loop.run()
        return loop

    def once(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors of a file of the work directory, made if it is not there."""
        file = self.work / f"{name}.safetensors"
        if not file.exists():
            save_file(make(), f"{file}.partial")
            os.replace(f"{file}.partial", file)
        return load_file(file)

    def generator(self, step: int = 0) -> torch.Generator:
        """The source of the random choices of a step."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + step)


def rounded(module: nn.Module) -> dict[str, Tensor]:
    """State dict whose floats are what bfloat16 stores, so that figures hold for the files."""
    state = module.state_dict()
    return {n: t.bfloat16().float().contiguous() if t.is_floating_point() else t for n, t in state.items()}
