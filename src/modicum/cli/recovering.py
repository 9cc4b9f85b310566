"""`modicum recover`."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from modicum.cli import options
from modicum.cli.compressing import Settings, steps_of

Method = Annotated[str, typer.Option("--method", "-m", help="distill.masked_kd, distill.finetune, …")]
Teacher = Annotated[
    str | None, typer.Option("--teacher", "-t", help="The original: a directory, nano model or hub id.")
]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="stdlib (for a model that draws digits: the digits), a text, or rows of samples (.safetensors).",
    ),
]
Lora = Annotated[
    int | None,
    typer.Option(
        "--lora",
        min=1,
        help="Train a low-rank update of this rank, merged in the end, instead of all weights.",
    ),
]
Length = Annotated[int, typer.Option("--length", min=2, help="Tokens per window, up to the context.")]


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "recover",
        epilog="modicum recover small --teacher nano-lm --method distill.masked_kd --set steps=300 --out better",
    )(recover)


def recover(
    model: options.Model,
    out: options.Out,
    method: Method = "distill.masked_kd",
    teacher: Teacher = None,
    set_: Settings = None,
    lora: Lora = None,
    data: Data = "stdlib",
    length: Length = 512,
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Train a compressed model to give back what compression took; a killed training goes on with the same command.

    What is pruned stays pruned: weights that are zero are not moved, and are stored as they were.
    """
    from modicum import api
    from modicum.cli.console import RunProgress, console, duration, print_json
    from modicum.pipeline import recipe as recipes

    screen = console(quiet, as_json)
    started = time.monotonic()
    recipe = recipes.parse(
        {
            "steps": steps_of([method], [*(set_ or []), *([] if lora is None else [f"lora={lora}"])]),
            "calibration": {"source": data, "length": length},
            "seed": seed,
        }
    )
    progress = RunProgress(screen)
    run = api.prepare_recovery(
        model, recipe, out, teacher=teacher, device=device, overwrite=overwrite, progress=progress
    )
    try:
        notes = run.execute().notes[method]
    finally:
        progress.close()
    seconds = time.monotonic() - started
    if as_json:
        print_json({"out": str(out), "seconds": seconds, **notes})
    screen.print(f"[green]✓[/] {out}  {notes['steps']} steps in {duration(seconds)}")
