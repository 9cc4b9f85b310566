"""`modicum demo`: a real language model compressed end to end in about a minute, from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modicum.cli import options

STEPS = [{"prune.sparsegpt": {"sparsity": 0.5}}, {"quantize.gptq": {"bits": 4, "group_size": 64}}]
CALIBRATION = {"samples": 64, "length": 256}
PROMPTS = ["def read_", "class Queue:\n    def __init__(self", "import os\nimport sys\n\n"]


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("demo", epilog="modicum demo --out modicum-demo")(demo)


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The directory to write; replaced if it exists.")
    ] = Path("modicum-demo"),
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Prune half of a real language model, quantize the rest to 4 bits, and see what it cost."""
    from modicum import api
    from modicum.cli.console import RunProgress, StageProgress, console, print_json
    from modicum.pipeline.recipe import parse
    from modicum.report import write_report
    from modicum.report.terminal import comparison_table

    screen = console(quiet, as_json)
    screen.print(
        "[bold]nano-lm[/], a Llama that travels with modicum: half of its weights go, 4 bits for the rest.\n"
    )
    recipe = parse({"steps": STEPS, "calibration": CALIBRATION, "seed": seed})
    progress = RunProgress(screen)
    try:
        api.prepare("nano-lm", recipe, out, device=device, overwrite=True, progress=progress).execute()
    finally:
        progress.close()
    with StageProgress(screen) as stages:
        command = f"modicum demo --out {out} --seed {seed}"
        found = api.compare(
            "nano-lm",
            out,
            tokens=8192,
            prompts=PROMPTS,
            device=device,
            seed=seed,
            command=command,
            progress=stages,
        )
    page = write_report(found, out / "report")
    if as_json:
        print_json({"out": str(out), "report": str(page), **found.model_dump(mode="json")})
    screen.print(comparison_table(found))
    screen.print(f"Model   {out}\nReport  {page}")
    screen.print(f'[dim]Try it  modicum generate {out} "def read_"[/]')
