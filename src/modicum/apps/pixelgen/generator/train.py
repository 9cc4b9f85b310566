"""Train the generator: `python -m modicum.apps.pixelgen.generator.train --images FILE.npz --steps 4000 --out DIR`.

The same command after an interruption goes on from the last checkpoint, with the same result as if nothing had
happened. `--finish` writes what the last checkpoint holds, whenever that is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from modicum.apps.pixelgen.generator.card import card
from modicum.apps.pixelgen.generator.files import save
from modicum.apps.pixelgen.generator.images import Pictures, load_pictures
from modicum.apps.pixelgen.generator.measure import quality
from modicum.apps.pixelgen.generator.model import Generator
from modicum.apps.pixelgen.generator.network import GeneratorConfig, PixelNetwork
from modicum.apps.pixelgen.generator.objective import Painting
from modicum.errors import Interrupted, ModicumError, OutputExists
from modicum.trainer import Batch, Group, Moment, Settings, Trainer

EVERY = 10  # every tenth picture is held out


@dataclass(frozen=True)
class Training:
    """How the generator is trained. The defaults are those of the shipped one.

    Attributes:
        steps: of the optimizer.
        batch: pictures per step.
        lr: peak learning rate; after a warm-up it falls along a cosine to zero.
        average: decay of the moving average of the weights, which is what is written.
        seed: of everything random.
        measured: held-out pictures that the figures are taken on.
    """

    config: GeneratorConfig = field(default_factory=GeneratorConfig)
    steps: int = 4000
    batch: int = 32
    lr: float = 2e-3
    average: float = 0.999
    seed: int = 0
    measured: int = 1000


def trainer(pictures: Tensor, work: Path, how: Training, report: Callable[[str], None] = print) -> Trainer:
    """A training at its first step, or where `work` stands.

    Args:
        pictures: uint8 `[n, 3, side, side]`.
        work: directory of the checkpoints.
        how: sizes and schedule.
        report: receives lines of progress.

    Raises:
        CheckpointError: `work` holds another training.
    """
    torch.manual_seed(how.seed)
    network, objective = PixelNetwork(how.config).train(), Painting(how.config)

    def loss(model: nn.Module, batch: Batch, at: Moment) -> Tensor:
        return objective(model, batch, at.generator).mean()

    settings = Settings(
        steps=how.steps, schedule="cosine", warmup=200, average=how.average, seed=how.seed, save_every=100
    )
    identity = {"recipe": "pixelgen", "pictures": len(pictures), "batch": how.batch, "lr": how.lr}
    return Trainer(
        network,
        [Group(list(network.parameters()), how.lr)],
        loss,
        Pictures(pictures).batches(how.batch, how.seed),
        settings,
        work,
        {**identity, "config": how.config.to_dict()},
        report=report,
    )


def write(out: Path, training: Trainer, held_out: Tensor, how: Training, source: str) -> None:
    """Write the averaged network with its figures and its card.

    Args:
        out: directory that does not exist yet.
        training: finished, or on the way.
        held_out: uint8 `[n, 3, side, side]`, pictures that were not trained on.
        how: it was trained.
        source: what the pictures are, for the card.
    """
    network = PixelNetwork(how.config).eval()
    state = {name: value.bfloat16().float() for name, value in training.state_dict().items()}
    network.load_state_dict(state)
    generator = Generator(network)
    metrics = {
        **quality(generator, held_out[: how.measured] / 255),
        "source": source,
        "trained_on": training.identity["pictures"],
        "steps": training.step,
        "batch": how.batch,
        "minutes": round(training.seconds / 60, 1),
        "seed": how.seed,
    }
    texts = {
        "metrics.json": json.dumps(metrics, indent=2) + "\n",
        "README.md": card(out.name, generator, metrics),
    }
    save(generator, out, extra=texts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, train, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m modicum.apps.pixelgen.generator.train", description="Train PixelGen's generator."
    )
    parser.add_argument("--images", type=Path, required=True, help="an .npz file or a folder of images")
    parser.add_argument("--source", help="what the images are, for the card (default: the file's name)")
    parser.add_argument("--held-out", type=Path, help="others, for the figures (default: every tenth)")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--work", type=Path, help="directory of the checkpoints (default: OUT.work)")
    parser.add_argument("--steps", type=int, default=Training.steps)
    parser.add_argument("--batch", type=int, default=Training.batch)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--finish", action="store_true", help="write what the last checkpoint holds")
    given = parser.parse_args(arguments)
    try:
        _train(given)
    except KeyboardInterrupt:
        print(Interrupted("Training interrupted.", "The same command goes on from the last checkpoint."))
        return Interrupted.exit_code
    except ModicumError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _train(given: argparse.Namespace) -> None:
    if given.out.exists():
        raise OutputExists(f"{given.out} is already there.", "Name another --out, or move it away.")
    how = Training(steps=given.steps, batch=given.batch, seed=given.seed)
    pictures = load_pictures(given.images)
    held_out = load_pictures(given.held_out) if given.held_out else pictures[::EVERY]
    if not given.held_out:
        pictures = pictures[torch.arange(len(pictures)) % EVERY != 0]
    work = given.work or given.out.with_name(f"{given.out.name}.work")
    training = trainer(pictures, work, how, lambda line: print(line, flush=True))
    if not given.finish:
        training.run()
    write(given.out, training, held_out, how, given.source or given.images.name)
    print(f"wrote {given.out}")


if __name__ == "__main__":
    sys.exit(main())
