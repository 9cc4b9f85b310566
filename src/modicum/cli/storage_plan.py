"""What `modicum plan` shows of a recipe that ends with a storage step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group

from modicum.cli.console import duration, labelled, plan_table, size
from modicum.cli.whole_plan import whole_plan_table

if TYPE_CHECKING:
    from modicum.pipeline.storage_plan import StoragePlan


def storage_plan_table(plan: StoragePlan) -> Group:
    """The plan of the steps before, if there are any, and what the storage step will do and need."""
    from modicum.pipeline.plan import Plan

    table = labelled(_rows(plan))
    if plan.before is None:
        return Group(table)
    first = plan_table(plan.before) if isinstance(plan.before, Plan) else whole_plan_table(plan.before)
    return Group(first, "", table)


def _rows(plan: StoragePlan) -> Iterator[tuple[str, str]]:
    if plan.before is None:
        yield "model", f"{Path(plan.model).name}  ({plan.family}, {plan.dtype})"
    coded = [group for group in plan.groups if not group.raw]
    weights = sum(group.weights for group in coded)
    yield "codes", f"{plan.step}  ({weights:,} weights in {len(coded)} groups)"
    for group in plan.groups:
        if group.raw:
            yield "rest", f"{group.name} stays as it is: {group.raw}"
    yield "rest", f"{plan.rest} other tensors stay as they are"
    yield "weights", _sizes(plan)
    yield (
        "needs",
        f"{size(plan.peak_memory)} memory, {size(plan.scratch)} disk, about {duration(plan.seconds)}",
    )
    for sentence in plan.unknown:
        yield "unknown", sentence


def _sizes(plan: StoragePlan) -> str:
    if plan.weights_after is None or plan.bound is None:
        return f"{size(plan.weights_before)}  →  not known yet"
    about = "about " if plan.estimated else ""
    return (
        f"{size(plan.weights_before)}  →  {about}{size(plan.weights_after)}  "
        f"({plan.weights_after / plan.weights_before:.1%}, bound {plan.bound / plan.weights_before:.1%})"
    )
