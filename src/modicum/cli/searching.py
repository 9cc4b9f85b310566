"""`modicum search`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modicum.cli import options
from modicum.cli.settings import parse_setting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from modicum.search import Individual

Model = Annotated[str, typer.Argument(help="A language model's directory, a nano model's name, or a hub id.")]
Method = Annotated[str, typer.Option("--method", "-m", help="Whose scores say which weights of a layer go.")]
Set = Annotated[list[str] | None, typer.Option("--set", "-s", help="KEY=VALUE for the method; repeatable.")]
Mean = Annotated[
    float, typer.Option("--sparsity", help="Fraction of the weights that are pruned, on the whole.")
]
Population = Annotated[int, typer.Option("--population", min=2, help="Candidates per generation.")]
Generations = Annotated[int, typer.Option("--generations", min=0, help="Generations after the random one.")]
Sparsity = Annotated[float, typer.Option("--sparsity", help="Fraction of every output row that is pruned.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes; as many as there are threads by default.")
]
Ray = Annotated[str | None, typer.Option("--ray", help="Address of a Ray cluster to work on.")]
Start = Annotated[
    list[str] | None,
    typer.Option("--start", help="A name (wanda, ria, …) or formula to begin with, too; repeatable."),
]
Calibration = Annotated[
    str, typer.Option("--calibration", help="Text: stdlib, a file or folder, hf:DATASET.")
]
Samples = Annotated[int, typer.Option("--samples", min=1, help="Calibration windows.")]
Length = Annotated[int, typer.Option("--length", min=2, help="Tokens per window.")]
Windows = Annotated[int, typer.Option("--windows", min=1, help="Windows that a candidate is evaluated on.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The directory to write, or to go on in.")]


def add_to(app: typer.Typer) -> None:
    """Register the group."""
    group = typer.Typer(no_args_is_help=True, help="Search by evolution: for formulas, for sparsities.")
    group.command(
        "prune-metric",
        epilog="modicum search prune-metric nano-lm --generations 10 --sparsity 0.5 --out metric-search",
    )(prune_metric)
    group.command(
        "sparsity",
        epilog="modicum search sparsity nano-lm --method prune.wanda --sparsity 0.7 --out sparsity-search",
    )(sparsity)
    app.add_typer(group, name="search")


def prune_metric(
    model: Model = "nano-lm",
    out: Out = Path("metric-search"),
    population: Population = 20,
    generations: Generations = 10,
    sparsity: Sparsity = 0.5,
    start: Start = None,
    calibration: Calibration = "stdlib",
    samples: Samples = 32,
    length: Length = 256,
    windows: Windows = 16,
    seed: options.Seed = 0,
    workers: Workers = None,
    ray: Ray = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Search for a formula that says which weights can go; a search that was stopped goes on with the same command.

    Candidates prune MODEL and are judged by its perplexity; the best one is compared with published metrics on text
    that the search never saw.
    """
    from modicum.api.searching import search_prune_metric
    from modicum.cli.console import console, print_json
    from modicum.report.metric_search import search_table, write_search_report

    screen = console(quiet, as_json)
    with _Bar(screen, population * (generations + 1)) as bar:
        found = search_prune_metric(
            model,
            out,
            workers=workers or _threads(),
            ray=ray,
            progress=bar,
            population=population,
            generations=generations,
            sparsity=sparsity,
            starts=tuple(start or ()),
            source=calibration,
            samples=samples,
            length=length,
            windows=windows,
            seed=seed,
        )
    found = found.model_copy(update={"command": _command()})
    page = write_search_report(found, out)
    if as_json:
        print_json(found.model_dump(mode="json", exclude={"entries"}))
    use = f'--method prune.pruner_zero --set metric="{found.found.formula}"'
    _conclude(screen, search_table(found), found.generation_seconds, use, out, page)


def sparsity(
    model: Model = "nano-lm",
    out: Out = Path("sparsity-search"),
    method: Method = "prune.wanda",
    set_: Set = None,
    sparsity: Mean = 0.5,
    population: Population = 20,
    generations: Generations = 10,
    calibration: Calibration = "stdlib",
    samples: Samples = 32,
    length: Length = 256,
    windows: Windows = 16,
    seed: options.Seed = 0,
    workers: Workers = None,
    ray: Ray = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Search for a sparsity per block at a fixed mean; a search that was stopped goes on with the same command.

    Candidates prune MODEL and are judged by its perplexity; the best one is compared with equal sparsities and those
    of OWL on text that the search never saw.
    """
    from modicum.api.searching import search_sparsity
    from modicum.cli.console import console, print_json
    from modicum.report.sparsity_search import sparsity_table, write_sparsity_report

    screen = console(quiet, as_json)
    with _Bar(screen, population * (generations + 1)) as bar:
        found = search_sparsity(
            model,
            out,
            workers=workers or _threads(),
            ray=ray,
            progress=bar,
            method=method,
            options=dict(parse_setting(text, "scope=row") for text in set_ or ()),
            population=population,
            generations=generations,
            sparsity=sparsity,
            source=calibration,
            samples=samples,
            length=length,
            windows=windows,
            seed=seed,
        )
    found = found.model_copy(update={"command": _command()})
    page = write_sparsity_report(found, out)
    if as_json:
        print_json({**found.model_dump(mode="json", exclude={"entries"}), "table": found.table})
    use = f"--method {method} --set sparsity={sparsity:g} --set allocation={out / 'sparsity.json'}"
    _conclude(screen, sparsity_table(found), found.generation_seconds, use, out, page)


def _command() -> str:
    """What was typed, for the report."""
    return shlex.join(["modicum", *sys.argv[1:]])


def _conclude(
    screen: Console, table: Table, seconds: Sequence[float], use: str, out: Path, page: Path
) -> None:
    """Print what was found, what it took, and where it lies."""
    screen.print(table)
    screen.print(_took(seconds))
    screen.print(f"Use it   {use}", soft_wrap=True)
    screen.print(f"Recipe   {out / 'best.yaml'}\nReport   {page}", soft_wrap=True)


def _took(seconds: Sequence[float]) -> str:
    """Seconds of the generations, in words."""
    each = f"{min(seconds):.1f} s" if len(seconds) == 1 else f"{min(seconds):.1f} to {max(seconds):.1f} s"
    return f"Took     {sum(seconds):.1f} s, {each} per generation"


def _threads() -> int:
    import torch

    return torch.get_num_threads()


class _Bar:
    """A bar over candidates with the best one so far; in a pipe, one line whenever that changes."""

    def __init__(self, screen: Console, total: int) -> None:
        from modicum.cli.console import Steps

        self.screen, self.total, self.best, self.done = screen, total, -1, 0
        self.steps = Steps(screen, "candidate")

    def __enter__(self) -> _Bar:
        self.steps.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.steps.__exit__()

    def __call__(self, latest: Individual, best: Individual) -> None:
        self.done += 1
        self.steps(self.done, self.total)
        if best.draft.number != self.best and best.outcome.fitness is not None:
            self.best = best.draft.number
            self.screen.print(
                f"{self.done:4d}  {best.outcome.fitness:.4f}  {best.draft.genome}",
                soft_wrap=True,
                markup=False,
            )
