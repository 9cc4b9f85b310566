"""The commands, assembled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from modicum.cli import (
    comparing,
    compressing,
    converting,
    demonstrating,
    encoding,
    exporting,
    generating,
    informing,
    measuring,
    pixelgen,
    recovering,
    searching,
    verifying,
)
from modicum.version import __version__

app = typer.Typer(
    name="modicum",
    help="Make trained models smaller, faster and cheaper to run, and say honestly what that cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"modicum {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Make trained models smaller, faster and cheaper to run, and say honestly what that cost."""


for module in (
    demonstrating,
    compressing,
    recovering,
    measuring,
    generating,
    comparing,
    exporting,
    verifying,
    converting,
    encoding,
    informing,
    searching,
    pixelgen,
):
    module.add_to(app)


def commands() -> dict[str, Any]:
    """Every command by its full name, those of groups included: "show", "pixelgen energy"."""

    def inside(group: Any, before: str) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from inside(command, f"{before}{name} ")
            else:
                yield before + name, command

    return dict(inside(typer.main.get_command(app), ""))
