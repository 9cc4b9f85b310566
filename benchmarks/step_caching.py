"""What step caching costs on nano-dit, beside fewer steps of the same sampler at equal work.

    python benchmarks/step_caching.py [--per-class 1] [--steps 50] [--repeats 5] [--seeds 0 1 2]

The reference is the sample of 250 DDIM steps from the same noise. Every policy runs on DDIM with `--steps` steps;
beside it stands plain DDIM with as many steps as fit into the same number of evaluated branches. Shown: the share of
the branches that was computed; mean squared error to the reference and to the plain sample of as many steps (pixels in
[0, 1], mean over the seeds); the time as a share of that of the plain sampler (median over pairs that are measured one
after the other); and what is kept from step to step. Guidance 1.5, both halves in one batch. Prints markdown tables
and writes benchmarks/results/step-caching-nano-dit.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from modicum import zoo
from modicum.diffusion.first_block_cache import FirstBlockCache
from modicum.diffusion.fora import FORA
from modicum.diffusion.step_cache import StepMethod, StepPolicy
from modicum.diffusion.taylorseer import TaylorSeer
from modicum.evaluate import environment
from modicum.models.dit import DiT, load_dit

RESULTS = Path(__file__).parent / "results" / "step-caching-nano-dit.json"
REFERENCE_STEPS = 250
INTERVALS, ORDERS, TAUS = (2, 3, 5), (1, 3), (0.05, 0.1, 0.2)
Draw = Callable[[int], Tensor]  # seed -> images


def methods() -> list[StepMethod]:
    """The policies that are compared."""
    by_interval: list[StepMethod] = []
    for n in INTERVALS:
        by_interval += [FORA(interval=n), *(TaylorSeer(interval=n, order=o) for o in ORDERS)]
    return [*by_interval, *(FirstBlockCache(tau=tau) for tau in TAUS)]


def called(method: StepMethod) -> str:
    """Name and settings, for a row."""
    settings = ", ".join(f"{key} {value}" for key, value in method.settings().items())
    return f"{type(method).__name__}, {settings}"


def draw(model: DiT, options: argparse.Namespace, steps: int, policy: StepPolicy | None, seed: int) -> Tensor:
    """The images of one seed."""
    with policy.attach(model) if policy else nullcontext():
        labels = list(range(model.config.num_classes))
        return model.generate(
            labels, count=options.per_class, cfg=1.5, steps=steps, sampler="ddim", seed=seed
        )


def seconds(drawn: Draw) -> float:
    """How long one generation takes."""
    begin = time.perf_counter()
    drawn(0)
    return time.perf_counter() - begin


def share_of_time(drawn: Draw, plain: Draw, repeats: int) -> float:
    """Median of the ratios of neighbouring runs."""
    return median(seconds(drawn) / seconds(plain) for _ in range(repeats))


def error(images: list[Tensor], others: list[Tensor]) -> float:
    """Mean squared error over all seeds."""
    return mean((a - b).square().mean().item() for a, b in zip(images, others, strict=True))


def main() -> None:
    """Measure every policy and its equal in plain steps."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--per-class", type=int, default=1, help="images of each digit, per seed")
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps under the policies")
    parser.add_argument("--repeats", type=int, default=5, help="timed pairs per row")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    model = load_dit(zoo.path("nano-dit"))
    run = partial(partial, draw, model, options)
    reference = [run(REFERENCE_STEPS, None)(seed) for seed in options.seeds]
    plain = run(options.steps, None)
    plain_images = [plain(seed) for seed in options.seeds]
    print(f"plain DDIM, {options.steps} steps: error {error(plain_images, reference):.2e}\n")
    print("| | branches | error to 250 | to plain | time | kept, MB |\n|---|---:|---:|---:|---:|---:|")
    found: dict[str, dict[str, float]] = {}

    def row(name: str, drawn: Draw, policy: StepPolicy | None, share: float) -> dict[str, float]:
        images = [drawn(seed) for seed in options.seeds]
        if policy is not None:
            share = policy.tally.evaluated / policy.tally.of
        values = {
            "branches": share,
            "error": error(images, reference),
            "error_to_plain": error(images, plain_images),
            "time": share_of_time(drawn, plain, options.repeats),
            "kept_bytes": policy.tally.nbytes if policy else 0,
        }
        found[name] = values
        numbers = f"{values['error']:.2e} | {values['error_to_plain']:.2e} | {values['time']:.2f}"
        print(f"| {name} | {share:.3f} | {numbers} | {values['kept_bytes'] / 1e6:.1f} |", flush=True)
        return values

    row(f"DDIM, {options.steps} steps", plain, None, 1.0)
    for method in methods():
        policy = StepPolicy(method)
        share = row(called(method), run(options.steps, policy), policy, 0)["branches"]
        fewer = max(1, round(share * options.steps))
        name = f"DDIM, {fewer} steps"
        if name not in found:
            row(name, run(fewer, None), None, fewer / options.steps)
    facts: dict[str, Any] = {"options": vars(options), "rows": found, "environment": environment()}
    facts["threads"] = torch.get_num_threads()
    RESULTS.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
