"""Train a nano model again: `python -m modicum.zoo.train nano-lm --minutes 55`.

A recipe is a function of the output directory, a work directory, a budget, a seed and a place for progress
lines; it registers itself by a line in `RECIPES`. The same command after an interruption goes on where the
work directory stands.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from modicum.errors import Interrupted, ModicumError, UnknownName
from modicum.zoo import nano_dit, nano_lm, nano_var
from modicum.zoo.loop import Budget

RECIPES: dict[str, Callable[..., None]] = {
    "nano-dit": nano_dit.train,
    "nano-lm": nano_lm.train,
    "nano-var": nano_var.train,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, train, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m modicum.zoo.train", description="Train a nano model.")
    parser.add_argument("name", help=f"one of: {', '.join(RECIPES)}")
    parser.add_argument("--out", type=Path, help="directory to write (default: ./NAME)")
    parser.add_argument(
        "--work", type=Path, help="directory for caches and the checkpoint (default: OUT.work)"
    )
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="wall time to train for")
    length.add_argument("--steps", type=int, help="optimizer steps to train for")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="an earlier model of the same kind to train on (nano-lm)")
    given = parser.parse_args(arguments)
    try:
        _train(given)
    except ModicumError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _train(given: argparse.Namespace) -> None:
    if given.name not in RECIPES:
        raise UnknownName.among("nano model", given.name, RECIPES)
    out = given.out or Path(given.name)
    work = given.work or out.with_name(f"{out.name}.work")
    budget = Budget(steps=given.steps, minutes=given.minutes)
    start = {"start": given.start} if given.start else {}
    try:
        RECIPES[given.name](out, work, budget, given.seed, lambda line: print(line, flush=True), **start)
    except KeyboardInterrupt as error:
        raise Interrupted(
            "Training interrupted.", "The same command goes on from the last checkpoint."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
