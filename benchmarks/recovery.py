"""Held-out perplexity of a pruned nano-lm, and what training with the mask kept gives back.

    python benchmarks/recovery.py [--steps 200] [--batch 2] [--settings ...] [--ways ...] [--device cpu] [--out FILE]

Wanda prunes; then every way trains from the same pruned weights for the same number of steps on the same windows of the
standard library's source, and zeros stay zero. Results are kept as they come: a measurement that FILE
(benchmarks/results/recovery.json) holds already is not made again. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import modicum
from modicum import zoo
from modicum.data.samples import Samples
from modicum.data.text import load_text
from modicum.data.windows import token_stream
from modicum.evaluate import environment, perplexity
from modicum.models import Anatomy
from modicum.pipeline.loading import load_tokenizer
from modicum.pipeline.recipe import parse
from modicum.pipeline.training_data import text_samples

RESULTS = Path(__file__).parent / "results" / "recovery.json"
SETTINGS: dict[str, dict[str, Any]] = {"60 %": {"sparsity": 0.6}, "2:4": {"pattern": "2:4"}}
WAYS: dict[str, dict[str, Any] | None] = {
    "pruned": None,
    "LoRA, rank 8": {"distill.finetune": {"lora": 8, "lr": 1e-3, "final_lr": 1e-4}},
    "all weights": {"distill.finetune": {"lr": 1e-4, "final_lr": 1e-5}},
    "all weights, logits KD": {"distill.logits_kd": {"lr": 1e-4, "final_lr": 1e-5}},
}
Found = dict[str, dict[str, dict[str, float]]]
"""Perplexity, sparsity and seconds by setting and way."""


def recovered(setting: str, way: str, data: Samples, given: argparse.Namespace) -> Any:
    """nano-lm, pruned and perhaps trained."""
    steps: list[dict[str, Any]] = [{"prune.wanda": SETTINGS[setting]}]
    training = WAYS[way]
    if training is not None:
        ((name, settings),) = training.items()
        rates = {key: given.rate * settings[key] for key in ("lr", "final_lr")}
        steps.append({name: {**settings, **rates, "steps": given.steps, "batch": given.batch}})
    recipe = parse({"steps": steps, "calibration": {"samples": 32}})
    model, teacher = (_whole(given.device) for _ in range(2))
    return modicum.compress(model, recipe, data=data, teacher=teacher)


def _whole(device: str) -> Any:
    return modicum.load(zoo.path("nano-lm"), dtype=torch.float32, device=device)


def zeros(model: Any) -> float:
    """Share of the weights of all blocks' layers that are exactly zero."""
    weights = [layer.weight.detach() for layer in Anatomy.of(model).layers()]
    return 1 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)


def measure(found: Found, given: argparse.Namespace, keep: Callable[[], None]) -> float:
    """Fill what is missing in `found`; returns the perplexity of the whole model."""
    directory = zoo.path("nano-lm")
    tokenizer = load_tokenizer(directory)
    stream = token_stream(load_text(None, "heldout"), tokenizer, given.tokens)
    data = text_samples("stdlib", tokenizer, given.length, given.steps * given.batch, seed=0)
    for setting in given.settings:
        for way in given.ways:
            results = found.setdefault(setting, {})
            if way not in results:
                started = time.perf_counter()
                model = recovered(setting, way, data, given)
                seconds = time.perf_counter() - started
                ppl = perplexity(model.eval(), stream, 512).ppl
                results[way] = {"perplexity": ppl, "zeros": zeros(model), "seconds": round(seconds, 1)}
                keep()
            print(f"{setting:5} {way:24} {results[way]}", flush=True)
    return perplexity(_whole(given.device), stream, 512).ppl


def table(found: Found, ways: list[str]) -> str:
    """Perplexities, and the zeros that each model has in the end."""
    lines = [
        f"| | {' | '.join(f'{name} | zeros' for name in found)} |",
        "|---|" + "---:|" * (2 * len(found)),
    ]
    for way in ways:
        cells = [
            f"{results[way]['perplexity']:.2f} | {results[way]['zeros']:.2%}" for results in found.values()
        ]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure every way at every setting."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--rate", type=float, default=1.0, help="what all learning rates are multiplied by")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    options = {name: getattr(given, name) for name in ("steps", "batch", "length", "tokens", "rate")}
    options["ways"] = WAYS
    before = json.loads(given.out.read_text()) if given.out.exists() else {"options": options}
    if before["options"] != options:
        raise SystemExit(f"{given.out} holds results for {before['options']}; name another --out.")
    found: Found = before.get("results", {})

    def keep(**more: Any) -> None:
        facts = {**before, "results": found, "environment": environment(), **more}
        given.out.write_text(json.dumps(facts, indent=1) + "\n")

    dense = measure(found, given, keep)
    keep(dense=dense)
    print(f"\nwhole model: {dense:.2f}\n\n{table(found, given.ways)}")


if __name__ == "__main__":
    main()
