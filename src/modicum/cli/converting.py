"""`modicum convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modicum.cli import options

if TYPE_CHECKING:
    from rich.console import Console


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    example = "modicum convert var_d16.pth --vae vae_ch160v4096z32.pth --out var-d16"
    app.command("convert", epilog=example)(convert)


def convert(
    checkpoint: Annotated[
        Path, typer.Argument(help="The transformer: var_d16.pth, infinity_8b_weights, DiT-XL-2-256x256.pt …")
    ],
    out: options.Out,
    vae: Annotated[
        Path | None, typer.Option("--vae", help="The file of the image tokenizer (VAR, Infinity).")
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="Published sizes; found by the shapes by default.")
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store in bfloat16.")] = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Turn an original checkpoint into a directory that modicum opens; no code in it is run.

    VAR and Infinity need the file of their tokenizer (--vae); DiT, SiT, TinyDiT and MAR are one file.
    """
    from modicum.cli.console import console

    screen = console(quiet, as_json)
    if vae is None:
        _classes(checkpoint, out, preset, half, screen, as_json)
    else:
        _maps(checkpoint, vae, out, preset, half, screen, as_json)


def _classes(
    checkpoint: Path, out: Path, preset: str | None, half: bool, screen: Console, as_json: bool
) -> None:
    """Convert a DiT, SiT or MAR."""
    from modicum.cli.console import print_json
    from modicum.models.class_conversion import convert_classes

    found = convert_classes(checkpoint, out, preset=preset, half=half)
    config, written = found.model.config, _bytes(out)
    if as_json:
        print_json({
            "out": str(out), "kind": config.kind, "preset": found.preset, "alike": found.alike,
            "parameters": found.parameters, "blocks": config.depth, "classes": config.num_classes,
            "latents": [config.in_channels, config.input_size, config.input_size], "weights_bytes": written,
        })  # fmt: skip
    screen.print(f"model       {config.kind} {found.preset}")
    screen.print(f"parameters  {found.parameters:,} in {config.depth} blocks")
    screen.print(
        f"draws       {config.num_classes} classes, {config.in_channels}×{config.input_size}×{config.input_size}"
    )
    _done(screen, out, written, found.alike)


def _maps(
    checkpoint: Path, vae: Path, out: Path, preset: str | None, half: bool, screen: Console, as_json: bool
) -> None:
    """Convert a VAR or Infinity."""
    from modicum.cli.console import print_json
    from modicum.models.conversion import convert as converted

    found = converted(checkpoint, vae, out, preset=preset, half=half)
    written = _bytes(out)
    maps = [f"{height}×{width}" for height, width in found.model.schedule.sizes]
    shape = found.model.shape
    if as_json:
        print_json({
            "out": str(out), "kind": found.kind, "preset": found.preset, "alike": found.alike,
            "parameters": found.parameters, "tokenizer_parameters": found.tokenizer_parameters,
            "layers": shape.layers, "heads": shape.heads, "head_dim": shape.head_dim,
            "maps": found.model.schedule.sizes, "weights_bytes": written,
        })  # fmt: skip
    screen.print(f"model       {found.kind} {found.preset}")
    screen.print(f"parameters  {found.parameters:,}, and {found.tokenizer_parameters:,} of the tokenizer")
    screen.print(f"attention   {shape.layers} layers, {shape.heads} heads of {shape.head_dim} channels")
    screen.print(f"maps        {' '.join(maps)}: {found.model.schedule.total:,} tokens")
    _done(screen, out, written, found.alike)


def _bytes(out: Path) -> int:
    return sum(file.stat().st_size for file in out.glob("*.safetensors"))


def _done(screen: Console, out: Path, written: int, alike: tuple[str, ...]) -> None:
    from modicum.cli.console import size

    screen.print(f"[green]✓[/] {out}  {size(written)}", soft_wrap=True)
    if alike:
        screen.print(f"[dim]{', '.join(alike)} has the same shapes; choose it with --preset.[/]")
