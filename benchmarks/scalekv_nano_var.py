"""What cache policies cost nano-var at equal tokens: pictures, logits and likelihood against the full cache.

    python benchmarks/scalekv_nano_var.py [--per-class 5] [--held-out 60] [--seed 0]

Two views of the same policies. Drawn: the same seeds with the full cache and with the policy; PSNR between the two
sets of images, Frechet distance of the judge's features between them, and from the policy's images to held-out real
digits. A drawn token that differs changes all later ones, so this view is noisy. Told: held-out real digits pass map by
map through the cache; mean Kullback-Leibler divergence of the next-token distributions from those of the full cache,
and nats per token. This view is deterministic.

All policies get the same tokens in sum. The window is 16 tokens, 4 at a budget of 4 % (10 tokens). Pooling over 5
tokens is the published setting; the coarse maps of nano-var are 4 and 6 tokens wide, so every policy that pools is
measured without pooling too. nano-var has 6 layers, for which ScaleKV takes no drafters by default; the row "drafter"
makes one of the layer with the lowest selectivity. Prints markdown tables and writes
benchmarks/results/scalekv-nano-var.json.

    python benchmarks/scalekv_nano_var.py --layers

cuts one layer at a time instead, to the 54 tokens of a uniform budget of 20 % and to the 16 that a refiner keeps beside
a drafter: what a drafter saves is the first column of its row, what it costs the others is the difference of the two.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from modicum import zoo
from modicum.allocate import CacheBudget, pruned_scales
from modicum.cache.h2o import H2O
from modicum.cache.policy import CachePolicy
from modicum.cache.pyramidkv import PyramidKV
from modicum.cache.scalekv import ScaleKV
from modicum.cache.sliding import Sliding
from modicum.cache.snapkv import SnapKV
from modicum.cache.streaming import Streaming
from modicum.calibrate.selectivity import measure_selectivity
from modicum.evaluate import environment
from modicum.evaluate.images import frechet, moments, psnr
from modicum.method import Context
from modicum.models import Anatomy
from modicum.models.next_scale import FullCache, KVCache, Step
from modicum.models.var import VAR, load_var
from modicum.zoo.digits import Digits, Judge, load_digits
from modicum.zoo.var_card import SAMPLING, draw_digits

RESULTS = Path(__file__).parent / "results" / "scalekv-nano-var.json"
BUDGETS = {"20%": 16, "10%": 16, "4%": 4}  # budget -> window
COLUMNS = ("PSNR", "Frechet to full", "Frechet to real", "KL to full", "nats")


def policies(model: VAR, budget: str, window: int, seed: int) -> Iterator[tuple[str, CachePolicy]]:
    """The policies at one budget, by name."""
    anatomy = Anatomy.of(model)
    batches: list[dict[str, Any]] = [{"labels": list(range(10)), "seed": seed, **SAMPLING}]

    def fitted(method: Any) -> CachePolicy:
        return method.fit(anatomy, Context(torch.Generator().manual_seed(seed), batches=batches))

    for kernel, pooled in ((5, ""), (1, ", no pooling")):
        common: dict[str, Any] = {"budget": budget, "window": window, "kernel": kernel}
        yield f"ScaleKV, released{pooled}", fitted(ScaleKV(**common))
        yield f"ScaleKV, paper{pooled}", fitted(ScaleKV(**common, mode="paper"))
        yield f"SnapKV{pooled}", fitted(SnapKV(**common))
        yield f"PyramidKV{pooled}", fitted(PyramidKV(**common))
    pruned = pruned_scales(model.schedule, fitted(SnapKV(budget=budget, window=window)).uniform)
    table = measure_selectivity(model, batches, generator=torch.Generator().manual_seed(seed))
    layer = int(table.z[:, pruned].mean(1).argmin())
    drafters = tuple((layer, scale) for scale in pruned)
    yield f"ScaleKV, drafter {layer}", fitted(ScaleKV(budget=budget, window=window, drafters=drafters))
    yield "H2O", fitted(H2O(budget=budget))
    yield "StreamingLLM", fitted(Streaming(budget=budget))
    yield "sliding", fitted(Sliding(budget=budget))


@torch.no_grad()
def told(model: VAR, digits: Digits, tokens: list[Tensor], cache: KVCache) -> Tensor:
    """Log-probabilities of every next token of real digits, read map by map through a cache, `[B, tokens, codes]`."""
    transformer = model.transformer
    inputs, condition = model.vae.quantize.teacher_input(tokens), transformer.class_emb(digits.labels)
    cache.begin(model.schedule)
    maps = [transformer.first_input(condition)]
    maps += [transformer.word_embed(part) for part in inputs.split(list(model.schedule.tokens[1:]), dim=1)]
    logits = [transformer.map_pass(x, condition, Step(scale, cache)) for scale, x in enumerate(maps)]
    return torch.cat(logits, dim=1).log_softmax(-1)


def divergence(read: Tensor, reference: Tensor) -> float:
    """Mean Kullback-Leibler divergence of log-probabilities `[..., codes]` from the reference, in nats."""
    return F.kl_div(read, reference, reduction="none", log_target=True).sum(-1).mean().item()


def one_layer_cut(
    model: VAR, digits: Digits, tokens: list[Tensor], reference: Tensor
) -> dict[str, list[float]]:
    """Divergence when only one layer is cut, to 54 tokens and to 16."""
    schedule, layers = model.schedule, model.shape.layers
    whole = CacheBudget.uniform(schedule, layers, schedule.offsets[-2])
    policy = ScaleKV(budget="100%", drafters=()).fitted(model)
    found: dict[str, list[float]] = {}
    print("| layer | KL at 54 tokens | KL at 16 |\n|---|---|---|")
    for layer in range(layers):
        for kept in (54, 16):
            rows = [*whole.tokens]
            rows[layer] = CacheBudget.uniform(schedule, 1, kept).tokens[0]
            cut = replace(policy, budget=CacheBudget(schedule, tuple(rows)))
            read = told(model, digits, tokens, cut.make_cache())
            found.setdefault(str(layer), []).append(divergence(read, reference))
        print(f"| {layer} | {found[str(layer)][0]:.4f} | {found[str(layer)][1]:.4f} |", flush=True)
    return found


def record(part: str, facts: dict[str, Any]) -> None:
    """Write one part of the results beside the other."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**known, part: {**facts, "environment": environment()}}, indent=2) + "\n")


def main() -> None:
    """Measure every policy at every budget, or every layer."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--per-class", type=int, default=5, help="images drawn of each digit")
    parser.add_argument("--held-out", type=int, default=60, help="real digits that are read")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", action="store_true", help="cut one layer at a time instead")
    options = parser.parse_args()
    directory = zoo.path("nano-var")
    model, judge = load_var(directory), Judge()
    judge.load_state_dict(load_file(directory / "judge.safetensors"))
    real = load_digits("heldout")
    real = Digits(real.images[: options.held_out], real.labels[: options.held_out])
    tokens = model.encode(real.images)
    truth = torch.cat(tokens, dim=1)

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        return judge.features(images)

    full_told = told(model, real, tokens, FullCache())
    if options.layers:
        record("layers", {"options": vars(options), "KL": one_layer_cut(model, real, tokens, full_told)})
        return
    full_images, _ = draw_digits(model, options.per_class, options.seed)
    full_features = moments(features(full_images))

    def measured(policy: CachePolicy) -> dict[str, float]:
        with policy.attach(model):
            images, _ = draw_digits(model, options.per_class, options.seed)
        read = told(model, real, tokens, policy.make_cache())
        values = (
            psnr(images, full_images),
            frechet(*full_features, *moments(features(images))),
            judge.distance(images),
            divergence(read, full_told),
            F.nll_loss(read.flatten(0, 1), truth.flatten()).item(),
        )
        return dict(zip(COLUMNS, values, strict=True))

    nats = F.nll_loss(full_told.flatten(0, 1), truth.flatten()).item()
    print(f"full cache: {nats:.4f} nats, Frechet to real {judge.distance(full_images):.2f}", flush=True)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for budget, window in BUDGETS.items():
        print(f"\n| {budget} | tokens | {' | '.join(COLUMNS)} |\n|---|---|{'---|' * len(COLUMNS)}")
        for name, policy in policies(model, budget, window, options.seed):
            values = measured(policy)
            found.setdefault(budget, {})[name] = values
            shown = " | ".join(f"{value:.4f}" if value < 3 else f"{value:.2f}" for value in values.values())
            print(f"| {name} | {policy.budget.total(len(model.schedule) - 1)} | {shown} |", flush=True)
    facts = {
        "full": {"nats": nats, "Frechet to real": judge.distance(full_images)},
        "options": vars(options),
        "found": found,
    }
    record("policies", facts)


if __name__ == "__main__":
    main()
