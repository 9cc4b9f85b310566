"""What pruning leaves of the sentence embeddings of a pretrained encoder, by method and sparsity.

    python benchmarks/pruning_encoder.py MODEL [--methods Wanda APT] [--settings "50 %" 2:4] [--seeds 0 1 2]
                                         [--samples 32] [--length 128] [--sentences 512] [--out FILE]

MODEL is a directory such as that of all-MiniLM-L6-v2. An encoder has no perplexity; what it is used for is the mean of
its last hidden states over a text. Measured on held-out text: 1 - cosine of that vector to the whole model's, and
Spearman's correlation of the similarities of all pairs of texts. Methods that need the gradient of a language model's
loss are left out. Results are kept as they come in FILE (benchmarks/results/pruning_encoder.json).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch
from kept_rows import KeptRows, Row
from pruning import METHODS, SETTINGS, fits, recipe
from torch import Tensor, nn
from torch.nn import functional as F

import modicum
from modicum.data.text import load_text
from modicum.data.windows import windows
from modicum.evaluate import environment
from modicum.pipeline.loading import load_tokenizer

RESULTS = Path(__file__).parent / "results" / "pruning_encoder.json"
WITHOUT_GRADIENTS = [name for name in METHODS if name not in ("GBLM", "Pruner-Zero")]


@torch.no_grad()
def embeddings(model: nn.Module, texts: Tensor) -> Tensor:
    """Unit vectors [texts, features] of token windows [texts, length]."""
    pooled = [model(input_ids=batch).last_hidden_state.float().mean(1) for batch in texts.split(64)]
    return F.normalize(torch.cat(pooled), dim=1)


def fidelity(found: Tensor, whole: Tensor) -> Row:
    """How far embeddings turned, and whether pairs are still as similar as they were."""
    upper = torch.triu_indices(len(whole), len(whole), offset=1)
    ranks = [(each @ each.T)[*upper].argsort().argsort().double() for each in (found, whole)]
    correlation = float(torch.corrcoef(torch.stack(ranks))[0, 1])
    return {"turned": 1 - float((found * whole).sum(1).mean()), "spearman": correlation}


def table(runs: Sequence[dict[str, Row]], key: str, digits: int) -> str:
    """Means over the seeds and half of their range, a line per method."""
    methods = list(dict.fromkeys(name.split(" at ")[0] for name in runs[0]))
    settings = list(dict.fromkeys(name.split(" at ")[1] for name in runs[0]))
    lines = [f"| method | {' | '.join(settings)} |", "|---|" + "---:|" * len(settings)]
    for method in methods:
        scores = [
            [run[f"{method} at {setting}"][key] for run in runs] if fits(method, setting) else []
            for setting in settings
        ]
        cells = [f"{mean(s):.{digits}f} ± {(max(s) - min(s)) / 2:.{digits}f}" if s else "" for s in scores]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure every method at every setting for every calibration seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--methods", nargs="+", choices=WITHOUT_GRADIENTS, default=WITHOUT_GRADIENTS)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--sentences", type=int, default=512)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    settings = {name: getattr(given, name) for name in ("samples", "length", "sentences")}
    rows = KeptRows(given.out, settings, {"model": given.model.name, "environment": environment()})
    tokenizer = load_tokenizer(given.model)
    held_out = windows(load_text(None, "heldout"), tokenizer, 32, given.sentences, seed=0)
    whole = embeddings(modicum.load(given.model), held_out)
    for setting in given.settings:
        for method in [each for each in given.methods if fits(each, setting)]:
            for seed in given.seeds:

                def measure(method: str = method, setting: str = setting, seed: int = seed) -> Row:
                    data = windows(load_text(None, "train"), tokenizer, given.length, given.samples, seed)
                    model = modicum.compress(modicum.load(given.model), recipe(method, setting), data=data)
                    return fidelity(embeddings(model, held_out), whole)

                row = rows.row(seed, f"{method} at {setting}", measure)
                print(
                    f"{setting:6} {method:18} {seed}  {row['turned']:.4f}  {row['spearman']:.4f}", flush=True
                )
    runs = [rows.runs[str(seed)] for seed in given.seeds]
    print(f"\n1 - cosine\n\n{table(runs, 'turned', 4)}\n\nSpearman\n\n{table(runs, 'spearman', 3)}")


if __name__ == "__main__":
    main()
