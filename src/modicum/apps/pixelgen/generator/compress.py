"""Make a generator smaller and faster with the toolkit's own methods.

    python -m modicum.apps.pixelgen.generator.compress --images FILE.npz --out DIR

What painting a frame costs is tiles x steps x blocks, so three things are cut: blocks (TinyFusion finds those that the
rest can replace, and distillation from the whole network repairs the rest), bits of the weights that are left, and
steps. Which methods, with which settings, is a recipe like any other; the one used by default lies beside this file.
Methods that train come first, on the loss that the generator was trained on; then the methods that change one matrix
at a time, calibrated on the same questions.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modicum.apps.pixelgen.generator.card import compressed_card
from modicum.apps.pixelgen.generator.files import save
from modicum.apps.pixelgen.generator.images import Pictures, load_pictures
from modicum.apps.pixelgen.generator.measure import quality
from modicum.apps.pixelgen.generator.model import Generator
from modicum.apps.pixelgen.generator.objective import Painting
from modicum.errors import ModicumError, OutputExists, RecipeConflict
from modicum.method import Context
from modicum.models import Anatomy
from modicum.pipeline.composition import live_properties, split_steps
from modicum.pipeline.memory_run import compress_model
from modicum.pipeline.plan import layer_steps
from modicum.pipeline.promises import Promised, promised_by
from modicum.pipeline.recipe import Recipe, load
from modicum.pipeline.whole_run import sweeps, transform

RECIPE = Path(__file__).with_name("recipe.yaml")
CALIBRATION = (8, 64)  # batches, pictures in each
MEASURED = 1000


def compress(
    generator: Generator,
    recipe: Recipe,
    pictures: Tensor,
    *,
    work: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, Any]]:
    """Compress a generator in place.

    Args:
        generator: its network is changed, and taught by what it was before.
        recipe: methods that train or change the structure, and methods of single layers.
        pictures: uint8 `[n, 3, side, side]` to train and calibrate on.
        work: directory of the checkpoints, one for each step of the recipe; None keeps none.
        report: receives lines of progress.

    Returns:
        What the methods found out, by their name.

    Raises:
        RecipeConflict: steps that cannot follow each other, or one that changes how a model runs.
    """
    split = split_steps(recipe.steps)
    if split.runtime:
        raise RecipeConflict(
            f"{split.runtime[0].name} is attached to a model that runs, and a generator's files hold none.",
            "Leave it out; fewer painting steps save more (see benchmarks/RESULTS.md).",
        )
    if split.storage:
        raise RecipeConflict(
            f"{split.storage[0].name} codes a checkpoint, and a generator is none.", "Leave it out."
        )
    live_properties(split.weights)
    network = generator.network
    objective, data = Painting(network.config), Pictures(pictures)
    context = Context(
        torch.Generator().manual_seed(recipe.seed),
        data=data,
        objective=objective,
        teacher=copy.deepcopy(network).eval(),
        progress=report,
    )

    def of_step(index: int) -> Context:
        folder = work / f"{index}-{split.whole[index].name}" if work else None
        return replace(context, work_directory=folder)

    promised: Promised = {}
    taken = 0
    for stage in split.stages:
        if sweeps(stage):
            part, start = recipe.model_copy(update={"steps": stage}), promised
            promised = promised_by(layer_steps(part), Anatomy.of(network).layers(), start)
            compress_model(network, part, _calibration(objective, data, recipe.seed), promised=start)
        else:
            contexts = [of_step(taken + index) for index in range(len(stage))]
            transform(Anatomy.of(network), stage, contexts.__getitem__, promised)
            taken += len(stage)
            network.eval()
    return context.notes


def _calibration(objective: Painting, data: Pictures, seed: int) -> list[Mapping[str, Tensor]]:
    """What the network is asked in training, as keyword arguments of its forward pass."""
    generator, count = torch.Generator().manual_seed(seed), CALIBRATION[0]
    batches = data.batches(CALIBRATION[1], seed)
    questions = [objective.ask(batches(index), generator, training=False) for index in range(count)]
    return [
        {"x": asked["x"], "t": asked["t"], "y": asked["tokens"], "drop_ids": asked["drop"]}
        for asked in questions
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, compress, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m modicum.apps.pixelgen.generator.compress",
        description="Compress PixelGen's generator.",
    )
    parser.add_argument("--model", default="pixelgen-nano", help="a directory or a shipped generator")
    parser.add_argument(
        "--recipe", type=Path, default=RECIPE, help="YAML (default: the one of the shipped generator)"
    )
    parser.add_argument(
        "--images", type=Path, required=True, help="to train on: an .npz file or a folder of images"
    )
    parser.add_argument("--held-out", type=Path, required=True, help="others, for the figures")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--work", type=Path, help="directory of the checkpoints (default: OUT.work)")
    parser.add_argument("--painting-steps", type=int, default=2, help="steps per picture by default")
    given = parser.parse_args(arguments)
    try:
        _compress(given)
    except ModicumError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _compress(given: argparse.Namespace) -> None:
    if given.out.exists():
        raise OutputExists(f"{given.out} is already there.", "Name another --out, or move it away.")
    generator, recipe = Generator.load(given.model), load(given.recipe)
    held_out = load_pictures(given.held_out)[:MEASURED] / 255
    before = quality(generator, held_out)
    work = given.work or given.out.with_name(f"{given.out.name}.work")
    notes = compress(
        generator,
        recipe,
        load_pictures(given.images),
        work=work,
        report=lambda line: print(line, flush=True),
    )
    generator.steps = given.painting_steps
    metrics = {**quality(generator, held_out), "before": before, "notes": notes}
    yaml = given.recipe.read_text(encoding="utf-8")
    texts = {
        "metrics.json": json.dumps(metrics, indent=2) + "\n",
        "recipe.yaml": yaml,
        "README.md": compressed_card(given.out.name, generator, metrics, yaml),
    }
    save(generator, given.out, extra=texts)
    print(f"wrote {given.out}")


if __name__ == "__main__":
    sys.exit(main())
