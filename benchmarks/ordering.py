"""Held-out perplexity of nano-lm after every method: do the orderings of the papers hold here?

    python benchmarks/ordering.py [--samples 128] [--tokens 65536] [--seeds 0 1 2]

Compresses in memory, so that what is compared is the method and not the storage. Prints a markdown table and writes
benchmarks/results/ordering.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean

import modicum
from modicum import zoo
from modicum.data.text import load_text
from modicum.data.windows import token_stream, windows
from modicum.evaluate import environment, perplexity
from modicum.pipeline.loading import load_tokenizer

RESULTS = Path(__file__).parent / "results" / "ordering.json"
LENGTH = 256
CASES: dict[str, dict[str, list[object]]] = {
    "50 % unstructured": {
        "magnitude": ["prune.magnitude"],
        "wanda": ["prune.wanda"],
        "sparsegpt": ["prune.sparsegpt"],
    },
    "2:4": {
        "magnitude": [{"prune.magnitude": {"pattern": "2:4"}}],
        "wanda": [{"prune.wanda": {"pattern": "2:4"}}],
        "sparsegpt": [{"prune.sparsegpt": {"pattern": "2:4"}}],
    },
    "4 bits, groups of 64": {
        "rtn": [{"quantize.rtn": {"bits": 4, "group_size": 64}}],
        "rtn asymmetric": [{"quantize.rtn": {"bits": 4, "group_size": 64, "symmetric": False}}],
        "awq (asymmetric)": [{"quantize.awq": {"bits": 4, "group_size": 64}}],
        "awq symmetric": [{"quantize.awq": {"bits": 4, "group_size": 64, "symmetric": True}}],
        "gptq": [{"quantize.gptq": {"bits": 4, "group_size": 64}}],
        "gptq asymmetric": [{"quantize.gptq": {"bits": 4, "group_size": 64, "symmetric": False}}],
    },
    "3 bits, groups of 64": {
        "rtn asymmetric": [{"quantize.rtn": {"bits": 3, "group_size": 64, "symmetric": False}}],
        "awq (asymmetric)": [{"quantize.awq": {"bits": 3, "group_size": 64}}],
        "gptq asymmetric": [{"quantize.gptq": {"bits": 3, "group_size": 64, "symmetric": False}}],
    },
    "50 % and 4 bits, groups of 64": {
        "magnitude, rtn": ["prune.magnitude", {"quantize.rtn": {"bits": 4, "group_size": 64}}],
        "wanda, awq": ["prune.wanda", {"quantize.awq": {"bits": 4, "group_size": 64}}],
        "sparsegpt, gptq": ["prune.sparsegpt", {"quantize.gptq": {"bits": 4, "group_size": 64}}],
    },
}


def main() -> None:
    """Measure every case for every calibration seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    directory = zoo.path("nano-lm")
    tokenizer = load_tokenizer(directory)
    stream = token_stream(load_text(None, "heldout"), tokenizer, options.tokens)
    texts = load_text(None, "train")
    batches = {seed: windows(texts, tokenizer, LENGTH, options.samples, seed) for seed in options.seeds}
    dense = perplexity(modicum.load(directory), stream, 512).ppl
    found: dict[str, dict[str, list[float]]] = {}
    print(f"dense {dense:.4f}\n\n| setting | method | perplexity (mean of {len(batches)} seeds) | x dense |")
    print("|---|---|---|---|")
    for setting, methods in CASES.items():
        for name, recipe in methods.items():
            scores = []
            for data in batches.values():
                model = modicum.compress(modicum.load(directory), recipe, data=data)
                scores.append(perplexity(model, stream, 512).ppl)
            found.setdefault(setting, {})[name] = scores
            print(f"| {setting} | {name} | {mean(scores):.3f} | {mean(scores) / dense:.3f} |", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    facts = {"dense": dense, "options": vars(options), "perplexity": found, "environment": environment()}
    RESULTS.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
