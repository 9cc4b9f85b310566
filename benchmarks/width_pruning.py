"""Held-out perplexity of nano-lm with fewer heads and neurons, by method; and what narrower models gain in speed.

    python benchmarks/width_pruning.py [--ratios 0.2 0.5] [--methods ...] [--seeds 0] [--tokens 16384] [--out FILE]
    python benchmarks/width_pruning.py --speed

Models lose the same number of parameters. Nothing is trained afterwards. Results are kept as they come: a measurement
that FILE (benchmarks/results/width_pruning.json) holds already is not made again. Prints a markdown table. --speed cuts
a random Llama of 12 blocks evenly and measures it beside the whole one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

import modicum
from modicum import zoo
from modicum.allocate.width import even, lowest_of_each, parameters
from modicum.data.text import load_text
from modicum.data.windows import token_stream, windows
from modicum.evaluate import environment, perplexity
from modicum.models import Anatomy
from modicum.models.surgery import Cuttable, cut, cuttable
from modicum.pipeline.loading import load_tokenizer
from modicum.pipeline.recipe import parse

RESULTS = Path(__file__).parent / "results" / "width_pruning.json"
SEARCH = {
    "samples": 32, "length": 128, "windows": 8, "generations": 4, "population": 16, "top": 8, "mutations": 10,
    "crossovers": 4, "finalists": 3,
}  # fmt: skip
METHODS: dict[str, dict[str, Any] | None] = {
    "random": None,
    "L2 norm": None,
    "coarse (LLM-Pruner vector)": {"prune.hywia": {"alpha": [0, 1]}},
    "fine (LLM-Pruner element)": {"prune.hywia": {"alpha": [1, 0]}},
    "HyWIA": {"prune.hywia": {}},
    "HyWIA, global": {"prune.hywia": {"scope": "global", "whole": [0, 0]}},
    "FLAP without bias": {"prune.flap": {"samples": 256, "bias": False}},
    "FLAP": {"prune.flap": {"samples": 256}},
    "search, even": {"prune.search_llm": {**SEARCH, "generations": 0, "population": 1, "reformation": False}},
    "search": {"prune.search_llm": {**SEARCH, "reformation": False}},
    "search, reformed": {"prune.search_llm": SEARCH},
}
Found = dict[str, dict[str, dict[str, float]]]
"""Perplexity by ratio, method and seed."""


def plain(model: nn.Module, ratio: float, score: Callable[[Cuttable], Tensor]) -> None:
    """Cut the lowest scores of every block but the first and the last, as LLM-Pruner does."""
    anatomy = Anatomy.of(model)
    units = cuttable(anatomy)
    middle = [unit for unit in units if 0 < unit.block < len(anatomy.blocks) - 1]
    scores = {unit: score(unit) for unit in middle}
    cut(anatomy, lowest_of_each(scores, even(middle, ratio * parameters(units))))


def norm(unit: Cuttable) -> Tensor:
    """Sum of squares of each group's weights."""
    parts = [part.of(part.layer.weight.detach()).square().sum((1, 2)) for part in unit.parts]
    return torch.stack(parts).sum(0)


def narrowed(method: str, ratio: float, seed: int, data: Tensor) -> nn.Module:
    """nano-lm after one method."""
    model: Any = modicum.load(zoo.path("nano-lm"), dtype=torch.float32)
    chosen = METHODS[method]
    if chosen is None:
        generator = torch.Generator().manual_seed(seed)
        plain(
            model, ratio, norm if method == "L2 norm" else lambda u: torch.rand(u.count, generator=generator)
        )
        return model  # type: ignore[no-any-return]
    ((name, settings),) = chosen.items()
    recipe = parse({"steps": [{name: {**settings, "ratio": ratio}}], "seed": seed})
    return modicum.compress(model, recipe, data=data)  # type: ignore[return-value]


def measure(found: Found, given: argparse.Namespace, keep: Callable[[], None]) -> float:
    """Fill what is missing in `found`; returns the perplexity of the whole model."""
    directory = zoo.path("nano-lm")
    tokenizer = load_tokenizer(directory)
    stream = token_stream(load_text(None, "heldout"), tokenizer, given.tokens)
    texts = load_text(None, "train")
    for ratio in given.ratios:
        for method in given.methods:
            scores = found.setdefault(f"{ratio:.0%}", {}).setdefault(method, {})
            for seed in given.seeds:
                if str(seed) not in scores:
                    started = time.perf_counter()
                    model = narrowed(method, ratio, seed, windows(texts, tokenizer, 128, 256, seed))
                    scores[str(seed)] = perplexity(model, stream, 512).ppl
                    size, seconds = sum(p.numel() for p in model.parameters()), time.perf_counter() - started
                    keep()
                    print(
                        f"{ratio:4.0%} {method:28} {size} {scores[str(seed)]:.3f} {seconds:.0f} s", flush=True
                    )
    return perplexity(modicum.load(directory, dtype=torch.float32), stream, 512).ppl


def table(found: Found, methods: list[str]) -> str:
    """Means over the seeds."""
    lines = [f"| method | {' | '.join(f'-{ratio}' for ratio in found)} |", "|---|" + "---:|" * len(found)]
    for method in methods:
        cells = [
            f"{mean(scores[method].values()):.2f}" if method in scores else "" for scores in found.values()
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


@torch.no_grad()
def speed(hidden: int, blocks: int) -> None:
    """Milliseconds of a prompt of 256 tokens, tokens per second behind it, and bytes of weights and cache."""
    from transformers import LlamaConfig, LlamaForCausalLM

    print(
        "| parameters | weights | cache at 320 tokens | prompt of 256 | tokens/s |\n|---:|---:|---:|---:|---:|"
    )
    for ratio in (0.0, 0.2, 0.5):
        config = LlamaConfig(
            vocab_size=2048, hidden_size=hidden, intermediate_size=hidden * 5 // 2, num_hidden_layers=blocks,
            num_attention_heads=hidden // 64, num_key_value_heads=hidden // 128, head_dim=64,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
        anatomy = Anatomy.of(model)
        units = cuttable(anatomy)
        cut(
            anatomy,
            lowest_of_each({u: torch.rand(u.count) for u in units}, even(units, ratio * parameters(units))),
        )
        print(f"| {' | '.join(measured(model))} |", flush=True)


def measured(model: Any) -> list[str]:
    """The cells of one row."""
    ids = torch.randint(3, 2048, (1, 256))
    best, rates = float("inf"), []
    for _ in range(3):
        started = time.perf_counter()
        cache = model(ids, use_cache=True).past_key_values
        best = min(best, time.perf_counter() - started)
        started = time.perf_counter()
        for _ in range(64):
            model(ids[:, -1:], past_key_values=cache, use_cache=True)
        rates.append(64 / (time.perf_counter() - started))
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    size = sum(parameter.numel() for parameter in model.parameters())
    return [
        f"{size:,}",
        f"{4 * size / 1e6:.1f} MB",
        f"{held / 1e6:.2f} MB",
        f"{1e3 * best:.0f} ms",
        f"{max(rates):.1f}",
    ]


def main() -> None:
    """Measure every method at every ratio, or speed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--speed", action="store_true")
    given = parser.parse_args()
    if given.speed:
        torch.manual_seed(0)
        speed(256, 6)
        speed(768, 12)
        return
    options = {"tokens": given.tokens, "search": SEARCH}
    before = json.loads(given.out.read_text()) if given.out.exists() else {"options": options}
    if before["options"] != options:
        raise SystemExit(f"{given.out} holds results for {before['options']}; name another --out.")
    found: Found = before.get("perplexity", {})

    def keep(**more: Any) -> None:
        facts = {**before, "perplexity": found, "environment": environment(), **more}
        given.out.write_text(json.dumps(facts, indent=1) + "\n")

    dense = measure(found, given, keep)
    keep(dense=dense)
    print(f"\nwhole model: {dense:.2f}\n\n{table(found, given.methods)}")


if __name__ == "__main__":
    main()
