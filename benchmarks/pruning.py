"""Held-out perplexity of nano-lm after every pruning method at every sparsity, over several calibration seeds.

    python benchmarks/pruning.py [--methods Wanda APT] [--settings "50 %" 2:4] [--seeds 0 1 2]
                                 [--samples 32] [--length 256] [--tokens 16384] [--out FILE]

Compresses in memory, so that what is compared is the method and not the storage. Results are kept as they come: a
measurement that FILE (benchmarks/results/pruning.json) holds already is not made again. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import modicum
from modicum import zoo
from modicum.data.text import load_text
from modicum.data.windows import token_stream, windows
from modicum.evaluate import environment, perplexity
from modicum.pipeline.loading import load_tokenizer

RESULTS = Path(__file__).parent / "results" / "pruning.json"
METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"prune.magnitude": {}},
    "Wanda": {"prune.wanda": {}},
    "SparseGPT": {"prune.sparsegpt": {}},
    "APT": {"prune.apt": {}},
    "RIA": {"prune.pruner_zero": {"metric": "ria"}},
    "GBLM": {"prune.pruner_zero": {"metric": "gblm"}},
    "Pruner-Zero": {"prune.pruner_zero": {}},
    "CosP": {"prune.ace": {"score": "cosp"}},
    "CosP, first order": {"prune.ace": {"score": "cosp", "expansion": "first"}},
    "VarP": {"prune.ace": {"score": "varp"}},
    "ACE": {"prune.ace": {}},
    "ACE, first order": {"prune.ace": {"expansion": "first"}},
    "Wanda, OWL": {"prune.wanda": {"allocation": "owl"}},
    "SparseGPT, OWL": {"prune.sparsegpt": {"allocation": "owl"}},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "30 %": {"sparsity": 0.3},
    "50 %": {"sparsity": 0.5},
    "60 %": {"sparsity": 0.6},
    "70 %": {"sparsity": 0.7},
    "2:4": {"pattern": "2:4"},
    "4:8": {"pattern": "4:8"},
}
BLOCKS: dict[str, dict[str, Any]] = {
    "30 % of 16x16": {"sparsity": 0.3, "pattern": "16x16"},
    "30 % of rows": {"sparsity": 0.3, "pattern": "row"},
}
"""Settings that are measured only if they are asked for."""
Found = dict[str, dict[str, dict[str, float]]]
"""Perplexity by setting, method and seed."""


def recipe(method: str, setting: str) -> list[Any]:
    """One step: the method at this sparsity."""
    ((name, settings),) = METHODS[method].items()
    return [{name: {**settings, **{**SETTINGS, **BLOCKS}[setting]}}]


def fits(method: str, setting: str) -> bool:
    """Whether there is such a measurement: a pattern N:M leaves nothing to share out."""
    return "OWL" not in method or ":" not in setting


def measure(found: Found, given: argparse.Namespace, keep: Callable[[], None]) -> float:
    """Fill what is missing in `found`; returns the perplexity of the whole model."""
    directory = zoo.path("nano-lm")
    tokenizer = load_tokenizer(directory)
    stream = token_stream(load_text(None, "heldout"), tokenizer, given.tokens)
    texts = load_text(None, "train")
    for setting in given.settings:
        for method in given.methods:
            if not fits(method, setting):
                continue
            scores = found.setdefault(setting, {}).setdefault(method, {})
            for seed in given.seeds:
                if str(seed) not in scores:
                    data = windows(texts, tokenizer, given.length, given.samples, seed)
                    model = modicum.compress(modicum.load(directory), recipe(method, setting), data=data)
                    scores[str(seed)] = perplexity(model, stream, 512).ppl
                    keep()
            print(f"{setting:6} {method:12} {mean(scores.values()):.3f}", flush=True)
    return perplexity(modicum.load(directory), stream, 512).ppl


def table(found: Found, settings: list[str], methods: list[str]) -> str:
    """Means over the seeds, and how far the seeds lie apart."""
    lines = [f"| method | {' | '.join(settings)} |", "|---|" + "---:|" * len(settings)]
    for method in methods:
        cells = []
        for setting in settings:
            scores = list(found[setting][method].values()) if fits(method, setting) else []
            cells.append(f"{mean(scores):.3f} ± {(max(scores) - min(scores)) / 2:.3f}" if scores else "")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure every method at every setting for every calibration seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--settings", nargs="+", choices=[*SETTINGS, *BLOCKS], default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    options = {name: getattr(given, name) for name in ("samples", "length", "tokens")}
    before = json.loads(given.out.read_text()) if given.out.exists() else {"options": options}
    if before["options"] != options:
        raise SystemExit(f"{given.out} holds results for {before['options']}; name another --out.")
    found: Found = before.get("perplexity", {})

    def keep(**more: Any) -> None:
        facts = {**before, "perplexity": found, "environment": environment(), **more}
        given.out.write_text(json.dumps(facts, indent=1) + "\n")

    dense = measure(found, given, keep)
    keep(dense=dense)
    print(f"\nwhole model: {dense:.3f}\n\n{table(found, given.settings, given.methods)}")


if __name__ == "__main__":
    main()
