"""`modicum convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modicum.cli import options


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    example = "modicum convert var_d16.pth --vae vae_ch160v4096z32.pth --out var-d16"
    app.command("convert", epilog=example)(convert)


def convert(
    checkpoint: Annotated[
        Path, typer.Argument(help="The transformer: var_d16.pth, infinity_2b_reg.pth, infinity_8b_weights …")
    ],
    vae: Annotated[Path, typer.Option("--vae", help="The file of the image tokenizer.")],
    out: options.Out,
    preset: Annotated[
        str | None, typer.Option("--preset", help="Published sizes; found by the shapes by default.")
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store in bfloat16.")] = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Turn an original checkpoint of VAR or Infinity into a directory that modicum opens; no code in it is run."""
    from modicum.cli.console import console, print_json, size
    from modicum.models.conversion import convert as converted

    found = converted(checkpoint, vae, out, preset=preset, half=half)
    written = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    maps = [f"{height}×{width}" for height, width in found.model.schedule.sizes]
    shape = found.model.shape
    if as_json:
        print_json({
            "out": str(out), "kind": found.kind, "preset": found.preset, "alike": found.alike,
            "parameters": found.parameters, "tokenizer_parameters": found.tokenizer_parameters,
            "layers": shape.layers, "heads": shape.heads, "head_dim": shape.head_dim,
            "maps": found.model.schedule.sizes, "weights_bytes": written,
        })  # fmt: skip
    screen = console(quiet, as_json)
    screen.print(f"model       {found.kind} {found.preset}")
    screen.print(f"parameters  {found.parameters:,}, and {found.tokenizer_parameters:,} of the tokenizer")
    screen.print(f"attention   {shape.layers} layers, {shape.heads} heads of {shape.head_dim} channels")
    screen.print(f"maps        {' '.join(maps)}: {found.model.schedule.total:,} tokens")
    screen.print(f"[green]✓[/] {out}  {size(written)}")
    if found.alike:
        screen.print(f"[dim]{', '.join(found.alike)} has the same shapes; choose it with --preset.[/]")
