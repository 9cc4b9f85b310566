"""`modicum export`."""

from __future__ import annotations

from typing import Annotated

import typer

from modicum.cli import options
from modicum.errors import InvalidSetting


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("export", epilog="modicum export cut --uniform --out padded")(export)


def export(
    model: options.Model,
    out: options.Out,
    uniform: Annotated[
        bool, typer.Option("--uniform", help="Pad layers of different widths to the largest, with zeros.")
    ] = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Write a model with layers of different sizes so that servers which need equal shapes can open it."""
    if not uniform:
        raise InvalidSetting("Say what to export.", "--uniform pads all layers to the same shapes.")
    from modicum.cli.console import console, print_json, size
    from modicum.pipeline.uniform import export_uniform, is_uniform
    from modicum.zoo.locate import locate

    directory = locate(model)
    already = is_uniform(directory)
    written = export_uniform(directory, out)
    if as_json:
        print_json({"out": str(out), "weights_bytes": written, "already_uniform": already})
    told = "the layers were of equal shape already" if already else "all layers of equal shape"
    console(quiet, as_json).print(f"[green]✓[/] {out}  {size(written)}, {told}")
