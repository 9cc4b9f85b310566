"""Depth pruning of the nano models: is the learned choice of blocks better than the others, after equal training?

    python benchmarks/tinyfusion_nano.py lm   [--seeds 0] [--learn 300] [--train 300] [--choices learned shortgpt]
    python benchmarks/tinyfusion_nano.py dit  [--seeds 0 1 2] [--learn 600] [--train 600] [--model DIRECTORY]
    python benchmarks/tinyfusion_nano.py cost [--width 192] [--depth 12]

`lm` and `dit` halve the depth of nano-lm and nano-dit: every method chooses its blocks, then every choice is trained
for the same number of steps on the same batches; the learned choice of nano-dit is also recovered by distillation.
Shown is the loss on held-out data before and after. `cost` times a step that learns the mask beside a LoRA step of the
whole model, and measures the memory of both, each in a process of its own. A markdown table is printed;
benchmarks/results/tinyfusion-nano-*.json keeps the numbers.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import nn

import modicum
from modicum.api.training import transform_loaded
from modicum.data.samples import Samples, Table
from modicum.data.text import load_text
from modicum.data.windows import token_stream
from modicum.diffusion.gates import GatedNetwork, Gates
from modicum.diffusion.tinyfusion import TinyFusion
from modicum.distill.finetune import Finetune
from modicum.distill.logits_kd import LogitsKD
from modicum.distill.masked_kd import MaskedKD
from modicum.evaluate import environment
from modicum.method import ModelMethod
from modicum.models import Anatomy
from modicum.models.depth import as_groups
from modicum.models.dit import DiT, DiTConfig
from modicum.pipeline.loading import load_tokenizer
from modicum.pipeline.recipe import Recipe
from modicum.pipeline.training_data import text_samples
from modicum.prune.flux_lite import FluxLite
from modicum.prune.oracle import Oracle
from modicum.prune.random_masks import RandomMasks
from modicum.prune.sensitivity import Sensitivity
from modicum.prune.shortgpt import ShortGPT
from modicum.trainer import lora, objective_of
from modicum.trainer.questions import questions
from modicum.zoo.digit_samples import DigitSamples
from modicum.zoo.digits import load_digits
from modicum.zoo.dit_card import to_canvas
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

    @torch.no_grad()
    def loss(self, model: nn.Module) -> float:
        """Mean loss on held-out samples, the same questions for every model."""
        objective = objective_of(model)
        asked = questions(objective, self.held_out, self.held_out.count, 60, 12345, torch.device("cpu"))
        losses = [objective.loss(objective.answer(model, q), q).mean().item() for q in asked]
        return mean(losses)


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
    return Bench("nano-dit", model, data, Table(rows), 32, 5e-4, lambda loss: f"{loss:.4f}")


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


def compared(bench: Bench, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Every choice before and after training with one seed, and the learned one under distillation."""
    print(f"{bench.name}, seed {seed}: whole model {bench.shown(bench.loss(bench.model))}", flush=True)
    rows: dict[str, Any] = {}
    tuned = Finetune(steps=given.train, batch=bench.batch, lr=bench.lr, final_lr=bench.lr / 10)
    pruned: dict[str, nn.Module] = {}
    for name, method in choices(given.learn, bench.batch, given.groups).items():
        if given.choices and name not in given.choices:
            continue
        model, started = copy.deepcopy(bench.model), time.monotonic()
        notes = transform_loaded(model, Recipe.of(method, seed=seed), bench.data)
        chosen = time.monotonic() - started
        pruned[name] = model
        rows[name] = recovered(bench, model, tuned, seed) | {
            "kept": notes[method.name]["kept_blocks"],
            "confidence": notes[method.name].get("confidence"),
            "seconds_to_choose": round(chosen, 1),
        }
        print(f"  {name:14} {rows[name]}", flush=True)
    settings = tuned.model_dump(include={"steps", "batch", "lr", "final_lr"})
    teachings = (LogitsKD(**settings), MaskedKD(**settings)) if "learned" in pruned else ()
    for teaching in teachings:
        name = f"learned, {teaching.name.removeprefix('distill.')}"
        rows[name] = recovered(bench, pruned["learned"], teaching, seed)
        print(f"  {name:14} {rows[name]}", flush=True)
    return rows


def recovered(bench: Bench, pruned: nn.Module, method: ModelMethod, seed: int) -> dict[str, float]:
    """Held-out loss of a pruned model, and of a copy of it after training."""
    model = copy.deepcopy(pruned)
    transform_loaded(model, Recipe.of(method, seed=seed), bench.data, teacher=copy.deepcopy(bench.model))
    return {"before": round(bench.loss(pruned), 5), "after": round(bench.loss(model), 5)}


def table(bench: Bench, runs: dict[int, dict[str, Any]]) -> str:
    """Means over the seeds."""
    lines = ["| choice | blocks (first seed) | before | after training |", "|---|---|---|---|"]
    first = next(iter(runs.values()))
    for name, row in first.items():
        before, after = (mean(run[name][key] for run in runs.values()) for key in ("before", "after"))
        kept = " ".join(map(str, row.get("kept", [])))
        lines.append(f"| {name} | {kept} | {bench.shown(before)} | {bench.shown(after)} |")
    return "\n".join(lines)


def compare(bench: Bench, given: argparse.Namespace) -> None:
    """Run all seeds and keep the numbers."""
    runs = {seed: compared(bench, seed, given) for seed in given.seeds}
    settings = {
        "groups": given.groups,
        "learn": given.learn,
        "train": given.train,
        "batch": bench.batch,
        "lr": bench.lr,
    }
    groups = given.groups.replace(":", "of").replace(",", "-")
    content = {"settings": settings, "whole": bench.loss(bench.model), "runs": runs}
    keep(f"{bench.name}-{groups}-{given.learn}", content)
    print(table(bench, runs))


def keep(name: str, content: dict[str, Any]) -> None:
    """Write a result with its environment."""
    given = [word for word in sys.argv[1:] if not Path(word).is_absolute() and word != "--model"]
    line = " ".join(["python benchmarks/tinyfusion_nano.py", *given])
    value = {"command": line, **content, "environment": environment()}
    (RESULTS / f"tinyfusion-{name}.json").write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def one_cost(gated: bool, width: int, depth: int, steps: int = 8) -> dict[str, float]:
    """Median processor seconds of a LoRA step, and the memory that it needs beside the model, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = DiT(DiTConfig(hidden_size=width, depth=depth, num_heads=6, input_size=32, num_classes=10)).train()
    objective, seconds = objective_of(model), []
    batch = {"x0": torch.randn(4, 4, 32, 32), "y": torch.arange(4)}
    generator = torch.Generator().manual_seed(0)
    anatomy, gates = Anatomy.of(model), Gates(as_groups("1:2", depth))
    with lora(model, 8, 16, seed=0) as weights:
        network = GatedNetwork(anatomy, gates).train() if gated else model
        optimizer = torch.optim.AdamW([*weights, *(gates.parameters() if gated else [])], lr=1e-4)
        before = _memory("VmRSS")
        for _ in range(steps):
            started = time.process_time()  # of one thread: what else runs does not count
            objective(network, batch, generator).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.process_time() - started)
    return {"seconds": median(seconds[2:]), "bytes": _memory("VmHWM") - before}


def _memory(key: str) -> int:
    """Resident bytes of this process, now (VmRSS) or at their peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def cost(given: argparse.Namespace) -> None:
    """Both steps in turn, twice, in processes of their own; the best of each counts."""
    found: dict[str, list[dict[str, float]]] = {"dense": [], "gated": []}
    for _ in range(2):
        for kind in found:
            line = [
                sys.executable,
                __file__,
                "one",
                kind,
                "--width",
                str(given.width),
                "--depth",
                str(given.depth),
            ]
            found[kind].append(
                json.loads(subprocess.run(line, capture_output=True, check=True, text=True).stdout)
            )
    least = {k: {key: min(r[key] for r in runs) for key in ("seconds", "bytes")} for k, runs in found.items()}
    ratios = {key: least["gated"][key] / least["dense"][key] for key in ("seconds", "bytes")}
    keep("cost", {"model": {"width": given.width, "depth": given.depth}, "least": least, "ratios": ratios})
    print(f"time {ratios['seconds']:.3f}x, memory {ratios['bytes']:.3f}x of a LoRA step of the whole model")


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["lm", "dit", "cost", "one"])
    parser.add_argument("kind", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--learn", type=int, default=300)
    parser.add_argument("--train", type=int, default=300)
    parser.add_argument("--groups", default="1:2", help="of the learned choice, such as 4:6,2:6")
    parser.add_argument("--choices", nargs="+", default=[], help="names of the table's rows; all by default")
    parser.add_argument("--model", help="a directory instead of the nano model that is shipped")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--depth", type=int, default=12)
    given = parser.parse_args()
    if given.what == "one":
        print(json.dumps(one_cost(given.kind == "gated", given.width, given.depth)))
    elif given.what == "cost":
        cost(given)
    else:
        make = language_model if given.what == "lm" else diffusion_model
        compare(make(given.model or f"nano-{given.what}"), given)


if __name__ == "__main__":
    main()
