"""`modicum compare-kv`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from modicum.cli import image_options as images
from modicum.cli import options
from modicum.errors import InvalidSetting, OutputExists

Policies = Annotated[str, typer.Option("--policies", help="Cache policies, separated by commas.")]
Budgets = Annotated[str, typer.Option("--budgets", help="Budgets, separated by commas: 20%, 650, 8GB.")]
Rounds = Annotated[int, typer.Option("--rounds", min=1, help="How often every batch is timed.")]


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    example = (
        "modicum compare-kv nano-var --policies snapkv,scalekv --budgets 20%,10% --set window=9 --out caches"
    )
    app.command("compare-kv", epilog=example)(compare_kv)


def compare_kv(
    context: typer.Context,
    model: options.Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory of the report.")],
    policies: Policies = "snapkv,scalekv",
    budgets: Budgets = "10%",
    set_: images.Settings = None,
    label: images.Label = None,
    prompt: images.Prompt = None,
    negative: images.Negative = None,
    features: images.Features = None,
    text_encoder: images.TextEncoder = None,
    count: images.Count = None,
    at_once: images.AtOnce = None,
    cfg: images.Cfg = None,
    top_k: images.TopK = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", min=0.0, max=1.0, help="Draw from this share of the mass.")
    ] = None,
    tau: images.Tau = None,
    ratio: images.Ratio = None,
    pixels: images.Pixels = None,
    rounds: Rounds = 3,
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Draw the same images under several cache policies: what each costs in quality, brings in bytes and time."""
    from modicum.api.images import compare_kv as compared
    from modicum.cli.console import Steps, console
    from modicum.report.caches import cache_table, write_cache_report

    if out.exists() and not overwrite:
        raise OutputExists(f"{out} exists.", "Name another directory, or pass --overwrite.")
    screen = console(quiet, as_json)
    with Steps(screen, "batch") as progress:
        comparison, drawn = compared(
            model,
            _names(policies, "--policies"),
            _names(budgets, "--budgets"),
            settings=images.settings(set_),
            rounds=rounds,
            text_encoder=text_encoder,
            dtype=options.torch_dtype(dtype),
            device=device,
            command=shlex.join(["modicum", *sys.argv[1:]]),
            progress=progress,
            **images.wanted(context.params),
        )
    page = write_cache_report(comparison, drawn, out)
    if as_json:
        print(comparison.model_dump_json(indent=2))
    screen.print(cache_table(comparison))
    screen.print(f"Report  {page}")


def _names(text: str, option: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InvalidSetting(f"{option} names nothing.", "Separate several by commas.")
    return names
