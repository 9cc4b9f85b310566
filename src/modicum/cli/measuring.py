"""`modicum evaluate` and `modicum report`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modicum.cli import depth_report, options
from modicum.cli import image_options as images
from modicum.errors import UnsupportedModel

if TYPE_CHECKING:
    from rich.console import Console

    from modicum.evaluate import Comparison

Compressed = Annotated[str, typer.Argument(help="The compressed model's directory.")]
Against = Annotated[
    str, typer.Option("--against", "-a", help="The original: a directory, nano model or hub id.")
]
Prompt = Annotated[
    list[str] | None, typer.Option("--prompt", "-p", help="A text both models continue; repeatable.")
]
Window = Annotated[int | None, typer.Option("--window", min=2, help="Tokens per perplexity window.")]
Also = Annotated[
    list[str] | None,
    typer.Option("--also", help="A further model, such as the recovered one; repeatable (DiT, SiT)."),
]
Count = Annotated[
    int | None,
    typer.Option("--count", "-n", min=2, help="Images of each model (100).", rich_help_panel=images.IMAGES),
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", help="Measure only this: quality, size, memory, speed or samples; repeatable."),
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("evaluate", epilog="modicum evaluate small --against nano-lm")(evaluate)
    app.command("report", epilog="modicum report small --against nano-lm --out small/report")(report)


def evaluate(
    directory: Compressed,
    against: Against,
    text: options.Text = "stdlib",
    tokens: options.Tokens = 16384,
    window: Window = None,
    only: Only = None,
    prompt: Prompt = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Measure a compressed model beside its original: quality, bytes, memory, speed."""
    from modicum.cli.console import console
    from modicum.report.terminal import comparison_table

    screen = console(quiet, as_json)
    found = measured(screen, directory, against, text, tokens, window, only, prompt, seed, device, dtype)
    if as_json:
        print(found.model_dump_json(indent=2))
    screen.print(comparison_table(found))


def report(
    context: typer.Context,
    directory: Compressed,
    against: Against,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where to write the report; DIRECTORY/report by default."),
    ] = None,
    text: options.Text = "stdlib",
    tokens: options.Tokens = 16384,
    window: Window = None,
    prompt: Prompt = None,
    also: Also = None,
    count: Count = None,
    at_once: images.AtOnce = None,
    steps: images.Steps = None,
    sampler: images.Sampler = None,
    cfg: images.Cfg = None,
    vae: images.Vae = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Measure as `evaluate` does and write a page to look at (report.html) and its numbers (report.json).

    Of diffusion transformers the page shows what all models draw from equal noise, and which blocks stayed.
    """
    from modicum.cli.console import console
    from modicum.report import write_report
    from modicum.report.terminal import comparison_table

    given = [name for name in context.params if _typed(context, name)]
    if depth_report.draws_from_noise(against):
        depth_report.refuse(given, depth_report.TEXT_ONLY, against, "draws images")
        depth_report.write(context.params)
        return
    depth_report.refuse(given, depth_report.IMAGES_ONLY, against, "writes text")
    screen = console(quiet, as_json)
    found = measured(screen, directory, against, text, tokens, window, None, prompt, seed, device, dtype)
    page = write_report(found, out or Path(directory) / "report")
    if as_json:
        print(found.model_dump_json(indent=2))
    screen.print(comparison_table(found))
    screen.print(f"Report  {page}")


def measured(
    screen: Console,
    directory: str,
    against: str,
    text: str,
    tokens: int,
    window: int | None,
    only: list[str] | None,
    prompts: list[str] | None,
    seed: int,
    device: str,
    dtype: str,
) -> Comparison:
    """The comparison that the options ask for.

    Raises:
        UnsupportedModel: one of the models is a diffusion transformer.
    """
    from modicum import api
    from modicum.cli.console import StageProgress
    from modicum.evaluate.compare import EVERYTHING

    for model in (directory, against):
        if depth_report.draws_from_noise(model):
            raise UnsupportedModel(
                f"Texts are compared here; {Path(model).name} draws images.",
                "Compare diffusion transformers with each other, by modicum report.",
            )
    with StageProgress(screen) as progress:
        return api.compare(
            against,
            directory,
            text=text,
            tokens=tokens,
            what=only or EVERYTHING,
            window=window,
            prompts=prompts or (),
            dtype=options.torch_dtype(dtype),
            device=device,
            seed=seed,
            command=shlex.join(["modicum", *sys.argv[1:]]),
            progress=progress,
        )


def _typed(context: typer.Context, name: str) -> bool:
    """Whether a parameter stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
