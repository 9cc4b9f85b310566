"""Depth pruning of the nano models: is the learned choice of blocks better than the others, after equal training?

    python benchmarks/tinyfusion_nano.py lm   [--seeds 0] [--learn 300] [--train 300] [--choices learned shortgpt]
    python benchmarks/tinyfusion_nano.py dit  [--seeds 0 1 2] [--learn 600] [--train 600] [--per-class 20]

`lm` and `dit` halve the depth of nano-lm and nano-dit: every method chooses its blocks, then every choice is trained
for the same number of steps on the same batches; the learned choice of nano-dit is also recovered by distillation.
Shown is the loss on held-out data before and after; nano-dit also draws digits after training, from the same noise for
every choice, and the judge beside it measures their Frechet distance to real ones and how many it recognises. A
markdown table is printed: the mean over the seeds, and the least and the most.
benchmarks/results/tinyfusion-nano-*.json keeps every row as it comes; the same command goes on with what is missing.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from kept_rows import KeptRows, Row, table
from torch import nn

import modicum
from modicum.api.training import transform_loaded
from modicum.data.samples import Samples, Table
from modicum.data.text import load_text
from modicum.data.windows import token_stream
from modicum.diffusion.tinyfusion import TinyFusion
from modicum.distill.finetune import Finetune
from modicum.distill.logits_kd import LogitsKD
from modicum.distill.masked_kd import MaskedKD
from modicum.evaluate import environment
from modicum.method import ModelMethod
from modicum.models import Anatomy
from modicum.models.depth import as_groups, keep_blocks, last_of_groups
from modicum.models.dit import DiT
from modicum.pipeline.loading import load_tokenizer
from modicum.pipeline.recipe import Recipe
from modicum.pipeline.training_data import text_samples
from modicum.prune.flux_lite import FluxLite
from modicum.prune.oracle import Oracle
from modicum.prune.random_masks import RandomMasks
from modicum.prune.sensitivity import Sensitivity
from modicum.prune.shortgpt import ShortGPT
from modicum.trainer import objective_of
from modicum.trainer.questions import questions
from modicum.zoo.digit_samples import DigitSamples
from modicum.zoo.digits import Judge, load_digits, load_judge
from modicum.zoo.dit_card import draw_digits, for_judge, to_canvas
from modicum.zoo.locate import locate

RESULTS = Path(__file__).parent / "results"
WINDOW = 128  # tokens


@dataclass
class Bench:
    """A model, what trains it, and how its quality is told."""

    name: str
    model: nn.Module
    data: Samples
    held_out: Samples
    batch: int
    lr: float
    shown: Callable[[float], str]
    judge: Judge | None = None

    @torch.no_grad()
    def loss(self, model: nn.Module) -> float:
        """Mean loss on held-out samples, the same questions for every model."""
        objective = objective_of(model)
        asked = questions(objective, self.held_out, self.held_out.count, 60, 12345, torch.device("cpu"))
        losses = [objective.loss(objective.answer(model, q), q).mean().item() for q in asked]
        return mean(losses)

    def drawn(self, model: nn.Module, per_class: int) -> dict[str, float]:
        """What the judge says of digits that a model draws, from the same noise for every model; {} without a judge."""
        if self.judge is None or per_class == 0:
            return {}
        assert isinstance(model, DiT)
        images, labels = draw_digits(model.eval(), per_class)
        seen = for_judge(images)
        accuracy, frechet = self.judge.accuracy(seen, labels), self.judge.distance(seen)
        return {"frechet": round(frechet, 3), "accuracy": round(accuracy, 4)}


def language_model(directory: str) -> Bench:
    """nano-lm on windows of the standard library; quality is perplexity."""
    tokenizer = load_tokenizer(locate(directory))
    stream = token_stream(load_text("stdlib", "heldout"), tokenizer, 240 * WINDOW)
    held_out = Table({"input_ids": stream.view(-1, WINDOW)})
    data = text_samples("stdlib", tokenizer, WINDOW, 20_000, 0)
    model = modicum.load(directory, dtype=torch.float32)
    return Bench("nano-lm", model, data, held_out, 4, 1e-3, lambda loss: f"{math.exp(loss):.2f}")


def diffusion_model(directory: str) -> Bench:
    """nano-dit on digits; quality is its own loss, every held-out digit at ten steps of noise."""
    model = modicum.load(directory)
    assert isinstance(model, DiT)
    digits = load_digits("heldout")
    rows = {"x0": to_canvas(digits.images, model.config).repeat(10, 1, 1, 1), "y": digits.labels.repeat(10)}
    data = DigitSamples(model.config)
    return Bench(
        "nano-dit",
        model,
        data,
        Table(rows),
        32,
        5e-4,
        lambda loss: f"{loss:.4f}",
        load_judge(locate(directory)),
    )


def choices(learn: int, batch: int, groups: str) -> dict[str, ModelMethod]:
    """Every method at half the depth."""
    return {
        "learned": TinyFusion(groups=groups, steps=learn, batch=batch, lr=1e-3, gate_lr=2e-3),
        "shortgpt": ShortGPT(samples=256),
        "flux-lite": FluxLite(samples=256),
        "sensitivity": Sensitivity(samples=64),
        "random best": RandomMasks(samples=32, masks=200, take="best"),
        "random median": RandomMasks(samples=32, masks=200, take="median"),
        "oracle": Oracle(),
    }


def compared(bench: Bench, seed: int, given: argparse.Namespace, rows: KeptRows) -> None:
    """Every choice before and after training with one seed, and the learned one under distillation."""
    tuned = Finetune(steps=given.train, batch=bench.batch, lr=bench.lr, final_lr=bench.lr / 10)

    def chosen(method: ModelMethod) -> Row:
        model, started = copy.deepcopy(bench.model), time.monotonic()
        notes = transform_loaded(model, Recipe.of(method, seed=seed), bench.data)[method.name]
        seconds = round(time.monotonic() - started, 1)
        known = {"kept": notes["kept_blocks"], "confidence": notes.get("confidence")}
        return {
            **recovered(bench, model, tuned, seed, given.per_class),
            **known,
            "seconds_to_choose": seconds,
        }

    def taught(method: ModelMethod, kept: list[int]) -> Row:
        model = copy.deepcopy(bench.model)
        keep_blocks(Anatomy.of(model), kept)
        return recovered(bench, model, method, seed, given.per_class)

    for name, method in choices(given.learn, bench.batch, given.groups).items():
        if not given.choices or name in given.choices:
            row = rows.row(seed, name, partial(chosen, method))
            print(f"  seed {seed}  {name:22} {row}", flush=True)
            if name == "learned":
                kept = row["kept"]
    if given.choices and "learned" not in given.choices:
        return
    settings = tuned.model_dump(include={"steps", "batch", "lr", "final_lr"})
    pairs = last_of_groups(
        kept, as_groups(TinyFusion(groups=given.groups).groups, *Anatomy.of(bench.model).stacks)
    )
    for teaching in (LogitsKD(**settings), MaskedKD(**settings, pairs=pairs)):
        name = f"learned, {teaching.name.removeprefix('distill.')}"
        row = rows.row(seed, name, partial(taught, teaching, kept))
        print(f"  seed {seed}  {name:22} {row}", flush=True)


def recovered(bench: Bench, pruned: nn.Module, method: ModelMethod, seed: int, per_class: int) -> Row:
    """Held-out loss of a pruned model, and of a copy of it after training, which also draws."""
    model = copy.deepcopy(pruned)
    transform_loaded(model, Recipe.of(method, seed=seed), bench.data, teacher=copy.deepcopy(bench.model))
    losses = {"before": round(bench.loss(pruned), 5), "after": round(bench.loss(model), 5)}
    return {**losses, **bench.drawn(model, per_class)}


def compare(bench: Bench, given: argparse.Namespace) -> None:
    """Run all seeds and keep the numbers."""
    settings = {
        "groups": given.groups,
        "learn": given.learn,
        "train": given.train,
        "batch": bench.batch,
        "lr": bench.lr,
        "per_class": given.per_class if bench.judge is not None else None,
    }
    groups = given.groups.replace(":", "of").replace(",", "-")
    whole = {"loss": round(bench.loss(bench.model), 5), **bench.drawn(bench.model, given.per_class)}
    print(f"{bench.name}, whole: {whole}", flush=True)
    rows = KeptRows(
        RESULTS / f"tinyfusion-{bench.name}-{groups}-{given.learn}.json",
        settings,
        {**facts(), "whole": whole},
    )
    for seed in given.seeds:
        compared(bench, seed, given, rows)
    shown = {
        "before": bench.shown,
        "after": bench.shown,
        "frechet": "{:.1f}".format,
        "accuracy": "{:.3f}".format,
    }
    print(table([rows.runs[str(seed)] for seed in given.seeds], shown))


def facts() -> dict[str, Any]:
    """The command and the machine."""
    given = [word for word in sys.argv[1:] if not Path(word).is_absolute() and word != "--model"]
    line = " ".join(["python benchmarks/tinyfusion_nano.py", *given])
    return {"command": line, "environment": environment()}


def main(line: list[str] | None = None) -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["lm", "dit"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--learn", type=int, default=300)
    parser.add_argument("--train", type=int, default=300)
    parser.add_argument("--groups", default="1:2", help="of the learned choice, such as 4:6,2:6")
    parser.add_argument("--choices", nargs="+", default=[], help="names of the table's rows; all by default")
    parser.add_argument("--per-class", type=int, default=20, help="digits that nano-dit draws of each class")
    parser.add_argument("--model", help="a directory instead of the nano model that is shipped")
    given = parser.parse_args(line)
    make = language_model if given.what == "lm" else diffusion_model
    compare(make(given.model or f"nano-{given.what}"), given)


if __name__ == "__main__":
    main()
