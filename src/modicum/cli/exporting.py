"""`modicum export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modicum.cli import options
from modicum.errors import InvalidSetting, UnsupportedModel


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("export", epilog="modicum export cut --uniform --out padded")(export)


def export(
    model: options.Model,
    out: options.Out,
    uniform: Annotated[
        bool, typer.Option("--uniform", help="Pad layers of different widths to the largest, with zeros.")
    ] = False,
    diffusers: Annotated[
        bool, typer.Option("--diffusers", help="Write a DiT as diffusers' DiTTransformer2DModel.")
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Expand what is coded without loss, bit for bit.")
    ] = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Write a model so that others can open it: expanded, with layers of equal shape, or in diffusers' layout."""
    if uniform + diffusers + plain != 1:
        raise InvalidSetting(
            "Say how to export.",
            "--plain expands lossless codes, --uniform pads all layers to the same shapes, --diffusers writes a DiT "
            "for diffusers.",
        )
    if plain:
        _plain(model, out, quiet, as_json)
    elif diffusers:
        _to_diffusers(model, out, quiet, as_json)
    else:
        _uniform(model, out, quiet, as_json)


def _to_diffusers(model: str, out: Path, quiet: bool, as_json: bool) -> None:
    """Write a DiT, pruned or not, as diffusers has it."""
    from modicum import api
    from modicum.cli.console import console, print_json, size
    from modicum.models.dit import DiT, save_diffusers

    loaded = api.load(model)
    if not isinstance(loaded, DiT):
        raise UnsupportedModel(
            f"{Path(model).name} is no DiT, which is what diffusers has a class for.",
            "Give a DiT in modicum's layout.",
        )
    save_diffusers(loaded, out)
    written = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    if as_json:
        print_json({"out": str(out), "weights_bytes": written, "blocks": loaded.config.depth})
    screen = console(quiet, as_json)
    screen.print(f"[green]✓[/] {out}  {size(written)}, {loaded.config.depth} blocks", soft_wrap=True)
    screen.print(
        "[dim]diffusers computes with constants of its own; modicum.models.dit.diffusers_layout.exact(model) "
        "gives it those of the authors.[/]"
    )


def _plain(model: str, out: Path, quiet: bool, as_json: bool) -> None:
    from modicum.cli.console import console, print_json, size
    from modicum.pipeline.coded import expand
    from modicum.zoo.locate import locate

    written = expand(locate(model), out)
    if as_json:
        print_json({"out": str(out), "weights_bytes": written})
    screen = console(quiet, as_json)
    screen.print(f"[green]✓[/] {out}  {size(written)}, expanded")
    screen.print(f"[dim]Is every bit the same?  modicum verify {model} {out}[/]", soft_wrap=True)


def _uniform(model: str, out: Path, quiet: bool, as_json: bool) -> None:
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
