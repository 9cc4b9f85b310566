"""Options of the commands that draw images, each defined once, and what they ask for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from modicum.cli.settings import parse_setting
from modicum.errors import InvalidSetting

IMAGES, CACHE = "Images", "Caches"
PLAIN = (
    "negative",
    "features",
    "count",
    "at_once",
    "cfg",
    "top_k",
    "top_p",
    "tau",
    "ratio",
    "pixels",
    "seed",
)

Label = Annotated[
    list[str] | None,
    typer.Option(
        "--label", "-l", help="A class to draw (VAR, DiT, MAR); repeatable, or 1,2,3.", rich_help_panel=IMAGES
    ),
]
Prompt = Annotated[
    list[str] | None,
    typer.Option("--prompt", "-p", help="A text to draw (Infinity); repeatable.", rich_help_panel=IMAGES),
]
Negative = Annotated[
    str | None, typer.Option("--negative", help="A text to be led away from.", rich_help_panel=IMAGES)
]
Features = Annotated[
    Path | None,
    typer.Option(
        "--features", help="Text features instead of prompts (.safetensors).", rich_help_panel=IMAGES
    ),
]
TextEncoder = Annotated[
    Path | None,
    typer.Option(
        "--text-encoder", help="Directory of flan-t5-xl, which reads prompts.", rich_help_panel=IMAGES
    ),
]
Count = Annotated[
    int | None,
    typer.Option(
        "--count", "-n", min=1, help="Images in all (one per label or prompt).", rich_help_panel=IMAGES
    ),
]
AtOnce = Annotated[
    int | None, typer.Option("--at-once", min=1, help="Images per batch (8).", rich_help_panel=IMAGES)
]
Cfg = Annotated[
    float | None, typer.Option("--cfg", min=0.0, help="Strength of guidance.", rich_help_panel=IMAGES)
]
TopK = Annotated[
    int | None,
    typer.Option("--top-k", min=0, help="Draw from so many codes; 0: all.", rich_help_panel=IMAGES),
]
Tau = Annotated[float | None, typer.Option("--tau", help="Temperature (Infinity).", rich_help_panel=IMAGES)]
Ratio = Annotated[
    float | None, typer.Option("--ratio", help="Height / width (Infinity).", rich_help_panel=IMAGES)
]
Pixels = Annotated[
    str | None,
    typer.Option("--pixels", help="0.06M, 0.25M, 0.60M or 1M (Infinity).", rich_help_panel=IMAGES),
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        min=1,
        help="Passes of the network (DiT, SiT; 250), or per token (MAR; 100).",
        rich_help_panel=IMAGES,
    ),
]
Iterations = Annotated[
    int | None,
    typer.Option("--iterations", min=1, help="Rounds of tokens (MAR; 64).", rich_help_panel=IMAGES),
]
Sampler = Annotated[
    str | None,
    typer.Option("--sampler", help="ddpm or ddim (DiT), sde or ode (SiT).", rich_help_panel=IMAGES),
]
Vae = Annotated[
    Path | None,
    typer.Option(
        "--vae", help="Directory of the AutoencoderKL of a model of latents.", rich_help_panel=IMAGES
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        help="KEY=VALUE for policies that have KEY, or POLICY.KEY=VALUE.",
        rich_help_panel=CACHE,
    ),
]


def numbers(labels: Iterable[str]) -> list[int]:
    """Labels as typed, such as "3" or "1,2,3", as numbers.

    Raises:
        InvalidSetting: not a whole number.
    """
    parts = [part.strip() for label in labels for part in label.split(",")]
    for part in parts:
        if not part.isdecimal():
            raise InvalidSetting(f"--label {part!r} is not a class.", "Classes are whole numbers, such as 3.")
    return [int(part) for part in parts]


def wanted(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `modicum.api.inputs.request` from the options that were given; absent ones are left out.

    Args:
        given: parameters of a command by name, None where the option is absent.
    """
    found = {name: given[name] for name in PLAIN if given.get(name) is not None}
    if given.get("label"):
        found["labels"] = numbers(given["label"])
    if given.get("prompt"):
        found["prompts"] = list(given["prompt"])
    return found


def settings(texts: Iterable[str] | None) -> dict[str, Any]:
    """Settings of policies as typed."""
    return dict(parse_setting(text, "window=9") for text in texts or ())


def check_picture(out: Path, overwrite: bool) -> None:
    """Refuse a picture that cannot be written, before any work is done.

    Raises:
        InvalidSetting: its name is not that of a PNG file.
        OutputExists: it is there, and may not be replaced.
    """
    from modicum.report.files import check_free

    if out.suffix.lower() != ".png":
        raise InvalidSetting(f"--out {out} is no PNG file.", "Give it a name that ends in .png.")
    check_free(out, overwrite)
