"""What `modicum plan` shows of a recipe with steps over the whole model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from modicum.cli.console import labelled, size

if TYPE_CHECKING:
    from modicum.pipeline.whole_plan import StepPlan, WholePlan


def whole_plan_table(plan: WholePlan) -> Table:
    """What the run will do, what it needs, and what nobody knows yet."""
    return labelled(_rows(plan))


def _rows(plan: WholePlan) -> Iterator[tuple[str, str]]:
    yield "model", f"{Path(plan.model).name}  ({plan.family}, {plan.dtype}, {plan.blocks} blocks)"
    if plan.order:
        yield "order", "  →  ".join(plan.order)
    for step in plan.steps:
        yield "step", f"{step.name}  ({_effect(step)})"
    for steps, count in Counter(layer.steps for layer in plan.layers).items():
        yield "steps", f"{'  →  '.join(steps)}  ({count} layers)"
    if plan.layer_steps and not plan.layers:
        yield "steps", f"{'  →  '.join(plan.layer_steps)}  (on what is left)"
    if plan.weights_after is not None:
        ratio = plan.weights_after / plan.weights_before
        sizes = f"{size(plan.weights_before)}  →  {size(plan.weights_after)}"
        yield "weights", f"{sizes}  ({ratio:.1%}, {plan.format})"
    else:
        yield "weights", f"{size(plan.weights_before)}  →  not known yet"
    yield "needs", f"{size(plan.loaded)} memory for weights in float32, and what is computed with them"
    if plan.tokens or plan.samples:
        read = f"{plan.tokens:,} tokens" if plan.tokens else f"{plan.samples:,} samples"
        yield "data", f"{read} calibrate the layers"
    for sentence in plan.unknown:
        yield "unknown", sentence


def _effect(step: StepPlan) -> str:
    kept = [] if step.blocks is None else [f"{_sum(step.blocks)} blocks"]
    read = [f"reads {step.samples:,} samples"] if step.samples else []
    return ", ".join([*kept, *read]) or "reads no data"


def _sum(blocks: Sequence[int]) -> str:
    return " + ".join(map(str, blocks))
