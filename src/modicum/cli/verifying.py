"""`modicum verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from modicum.cli import options

DIFFERENT = 1
"""Exit code for checkpoints that differ, as `cmp` and `diff` have it."""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("verify", epilog="modicum verify nano-lm coded")(verify)


def verify(
    first: Annotated[str, typer.Argument(help="A model directory, a nano model's name, or a hub id.")],
    second: Annotated[str, typer.Argument(help="The one to compare with, in the same or another format.")],
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Prove that two checkpoints hold the same bits, tensor by tensor; the exit code is 1 if they do not.

    Weights that are coded without loss are decoded; everything else is compared as it lies in its file.
    """
    from modicum.cli.console import Steps, console, print_json, size
    from modicum.models.class_models import network_of
    from modicum.pipeline.verifying import verify as verified
    from modicum.zoo.locate import locate

    screen = console(quiet, as_json)
    with Steps(screen, "bytes") as steps:
        found = verified(network_of(locate(first)), network_of(locate(second)), steps.reach)
    if as_json:
        print_json(found.to_dict())
    if found.difference is None:
        screen.print(f"[green]✓[/] {found.tensors} tensors, {size(found.nbytes)}: every bit is the same")
        return
    screen.print(f"[red]✗[/] {found.difference.tensor}: {found.difference.what}", soft_wrap=True)
    raise typer.Exit(DIFFERENT)
