"""Train the last stage: `python -m modicum.apps.pixelgen.generator.train_upscaler --images FILE.npz --out FILE`.

Pictures are reduced to a half and a quarter, and small colours are in turn the true ones, and those that a generator
paints there; at full size only luma is missing. The loss is the squared error of luma, and that of how far red, green
and blue are from it; true colours leave a hundredth of the error of painted ones, which count accordingly less. The
file goes beside the config.json of any generator. The same command after an interruption goes on from the last
checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.apps.pixelgen.generator.colour import chroma, luma, offset
from modicum.apps.pixelgen.generator.enlarge import reduced
from modicum.apps.pixelgen.generator.files import UPSCALER
from modicum.apps.pixelgen.generator.images import Pictures, load_pictures
from modicum.apps.pixelgen.generator.missing import arrived
from modicum.apps.pixelgen.generator.model import Generator
from modicum.apps.pixelgen.generator.scene import scene_tokens
from modicum.apps.pixelgen.generator.upscale import Upscaler
from modicum.errors import ModicumError, OutputExists
from modicum.trainer import Batch, Group, Moment, Settings, Trainer

BATCH, LR, AVERAGE = 32, 2e-3, 0.995
TASKS = ((1, True), (2, True), (4, True), (2, False), (4, False))  # k, and whether colours are painted
LUMA, PAINTED, TRUE = 300.0, 100.0, 10_000.0  # weights of the three errors, which bring each of them near 1


class Upscaling:
    """The loss of an upscaler.

    Args:
        generator: paints small pictures.
    """

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def __call__(self, model: nn.Module, batch: Batch, at: Moment) -> Tensor:
        """The weighted errors over pictures, uint8 `[B, 3, side, side]`."""
        pictures = batch["pictures"] / 255
        k, painted = TASKS[at.step % len(TASKS)]
        mask = arrived(len(pictures), pictures.shape[-1], at.generator)
        mask |= ~mask.flatten(1).any(1).view(-1, 1, 1, 1)  # of a frame that is gone nothing can be learned
        frames = luma(pictures)
        small = self._painted(pictures, frames, mask, k) if painted and k > 1 else F.avg_pool2d(pictures, k)
        assert isinstance(model, Upscaler)
        y, c = model.found(small, frames * mask, mask, k, painted)
        colour = offset(c - chroma(pictures)).square().mean()
        return LUMA * (y - frames).square().mean() + (PAINTED if painted else TRUE) * colour

    def _painted(self, pictures: Tensor, frames: Tensor, mask: Tensor, k: int) -> Tensor:
        return self.generator.generate(*reduced(frames, mask, k), scene_tokens(pictures), steps=1)


def trainer(pictures: Tensor, generator: Generator, work: Path | None, steps: int, seed: int = 0) -> Trainer:
    """A training at its first step, or where `work` stands.

    Args:
        pictures: uint8 `[n, 3, side, side]`.
        generator: whose colours are enlarged.
        work: directory of the checkpoints; None keeps none.
        steps: of the optimizer.
        seed: of everything random.

    Raises:
        CheckpointError: `work` holds another training.
    """
    torch.manual_seed(seed)
    network = Upscaler().train()
    settings = Settings(
        steps=steps, schedule="cosine", warmup=100, average=AVERAGE, seed=seed, save_every=100
    )
    return Trainer(
        network,
        [Group(list(network.parameters()), LR)],
        Upscaling(generator),
        Pictures(pictures).batches(BATCH, seed),
        settings,
        work,
        {"recipe": "pixelgen-upscaler", "pictures": len(pictures), "batch": BATCH, "lr": LR},
        report=lambda line: print(line, flush=True),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, train, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m modicum.apps.pixelgen.generator.train_upscaler",
        description="Train the last stage of PixelGen's generator.",
    )
    parser.add_argument("--images", type=Path, required=True, help="an .npz file or a folder of images")
    parser.add_argument("--generator", default="pixelgen-nano-small", help="whose colours are enlarged")
    parser.add_argument("--out", type=Path, default=Path(UPSCALER), help="file to write")
    parser.add_argument("--work", type=Path, help="directory of the checkpoints (default: OUT.work)")
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        _train(given)
    except ModicumError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _train(given: argparse.Namespace) -> None:
    if given.out.exists():
        raise OutputExists(f"{given.out} is already there.", "Name another --out, or move it away.")
    generator = Generator.load(given.generator)
    generator.upscaler = None
    work = given.work or given.out.with_name(f"{given.out.name}.work")
    training = trainer(load_pictures(given.images), generator, work, given.steps, given.seed)
    training.run()
    half = {name: value.bfloat16() for name, value in training.state_dict().items()}
    save_file(half, given.out, {"format": "pt"})
    print(f"wrote {given.out}")


if __name__ == "__main__":
    sys.exit(main())
