"""What a command shows while it works: the plan first, then a bar per run; plain lines when nobody looks."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from modicum.pipeline.plan import Plan


def console(quiet: bool = False, as_json: bool = False) -> Console:
    """Standard output; silent under --quiet and --json, which prints its one object by itself."""
    return Console(quiet=quiet or as_json, highlight=False)


def print_json(value: Any) -> None:
    """The one object of --json."""
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def size(count: float) -> str:
    """Bytes for people: 9.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def labelled(rows: Iterable[tuple[str, str]] = ()) -> Table:
    """Two columns without lines, of labels and what they are for."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for row in rows:
        table.add_row(*row)
    return table


def plan_table(plan: Plan) -> Table:
    """The first screen of a run: what it will do and need."""
    table = labelled()
    layers = f"{len(plan.layers)} of {len(plan.layers) + len(plan.skipped)} weight matrices in {plan.blocks} blocks"
    table.add_row("model", f"{Path(plan.model).name}  ({plan.family}, {plan.dtype})")
    for steps, count in Counter(layer.steps for layer in plan.layers).items():
        table.add_row("steps", f"{'  →  '.join(steps)}  ({count} layers)")
    table.add_row("touched", layers)
    for sentence in plan.shares:
        table.add_row("sparsity", sentence)
    for reason, count in Counter(reason for _, reason in plan.skipped).items():
        names = [name for name, why in plan.skipped if why == reason]
        shown = names[0] if count == 1 else f"{names[0]} and {count - 1} more"
        table.add_row("skipped", f"{shown}: {reason}")
    ratio = plan.weights_after / plan.weights_before
    table.add_row(
        "weights", f"{size(plan.weights_before)}  →  {size(plan.weights_after)}  ({ratio:.1%}, {plan.format})"
    )
    table.add_row(
        "needs", f"{size(plan.peak_memory)} memory, {size(plan.scratch)} disk, about {duration(plan.seconds)}"
    )
    if plan.tokens:
        table.add_row("data", f"{plan.tokens:,} calibration tokens")
    return table


class RunProgress:
    """Progress of a run: a bar with block, layer, time left and memory; one line per block in a pipe."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None
        self.blocks = 0
        self.started = time.monotonic()

    def planned(self, plan: Plan, finished_blocks: int) -> None:
        """Show the plan and begin."""
        self.close()  # a recipe may sweep twice
        self.blocks = plan.blocks
        self.console.print(plan_table(plan))
        if finished_blocks:
            self.console.print(
                f"Going on behind block {finished_blocks} of {plan.blocks}, which was finished before."
            )
        if self.console.is_terminal and not self.console.quiet:
            self.bar = Progress(
                SpinnerColumn(),
                TextColumn("block"),
                MofNCompleteColumn(),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[memory]}", style="cyan"),
                TextColumn("{task.description}", style="dim"),
                console=self.console,
                transient=True,
            )
            self.bar.start()
            self.task = self.bar.add_task("", total=plan.blocks, completed=finished_blocks, memory="")

    def working(self, block: int, text: str) -> None:
        """What is being done."""
        if self.bar is not None:
            self.bar.update(self.task, description=text, memory=_memory())

    def finished(self, block: int) -> None:
        """A block is written."""
        if self.bar is not None:
            self.bar.update(self.task, completed=block + 1)
        else:
            elapsed = duration(time.monotonic() - self.started)
            self.console.print(f"block {block + 1}/{self.blocks} written  {elapsed}  {_memory()}")

    def learning(self, text: str) -> None:
        """How far a step over the whole model is."""
        self.console.print(f"[dim]{text}[/]")

    def close(self) -> None:
        """Take the bar off the screen."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class Steps:
    """Progress of steps that are counted from 1 to a number known with the first: a bar; nothing in a pipe.

    Args:
        console: where it is shown.
        unit: what is counted.
        runs: how often it is counted from 1 to that number.
    """

    def __init__(self, console: Console, unit: str, runs: int = 1) -> None:
        columns = (SpinnerColumn(), TextColumn(unit), MofNCompleteColumn(), BarColumn(bar_width=24))
        times = (TimeElapsedColumn(), TimeRemainingColumn(compact=True))
        hidden = not console.is_terminal or console.quiet
        self.bar = Progress(*columns, *times, console=console, transient=True, disable=hidden)
        self.task, self.runs = self.bar.add_task("", total=None), runs

    def __enter__(self) -> Steps:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def __call__(self, done: int, of: int) -> None:
        """One more step is done."""
        self.bar.update(self.task, advance=1, total=of * self.runs)

    def reach(self, done: int, of: int) -> None:
        """So many are done altogether."""
        self.bar.update(self.task, completed=done, total=of)


class StageProgress:
    """Progress of a comparison: one line that says what is being measured."""

    def __init__(self, console: Console) -> None:
        self.status = (
            console.status("loading both models") if console.is_terminal and not console.quiet else None
        )

    def __enter__(self) -> StageProgress:
        if self.status is not None:
            self.status.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.status is not None:
            self.status.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self.status is not None:
            self.status.update(f"measuring {stage}  {done}/{total}")


def _memory() -> str:
    from modicum.kernels.allocator import resident

    return size(resident())
