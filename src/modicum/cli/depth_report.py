"""`modicum report` for diffusion transformers."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from modicum.cli import options
from modicum.errors import InvalidSetting

TEXT_ONLY = ("text", "tokens", "window", "prompt")
IMAGES_ONLY = ("also", "count", "at_once", "steps", "sampler", "cfg", "vae")


def draws_from_noise(model: str) -> bool:
    """Whether a model draws classes out of noise: DiT, SiT or MAR."""
    from modicum.models.class_models import class_kind
    from modicum.zoo.locate import locate

    return class_kind(locate(model)) is not None


def refuse(given: Iterable[str], names: tuple[str, ...], model: str, does: str) -> None:
    """Refuse options that say nothing to this kind of model.

    Raises:
        InvalidSetting: one of them was given.
    """
    for name in given:
        if name in names:
            option = "--" + name.replace("_", "-")
            raise InvalidSetting(
                f"{option} says nothing to {Path(model).name}, which {does}.", "Leave it out."
            )


def write(settings: dict[str, Any]) -> None:
    """Draw with all models, measure, and write the page.

    Args:
        settings: parameters of `modicum report` by name.
    """
    from modicum.api.depths import compare_depths
    from modicum.cli.console import Steps, console
    from modicum.report.depths import depth_table, write_depth_report

    screen = console(settings["quiet"], settings["as_json"])
    chosen = {
        name: settings[name]
        for name in ("count", "at_once", "steps", "sampler", "cfg", "vae")
        if settings[name] is not None
    }
    with Steps(screen, "batch") as bar:
        comparison, images = compare_depths(
            settings["against"],
            [settings["directory"], *(settings["also"] or ())],
            seed=settings["seed"],
            dtype=options.torch_dtype(settings["dtype"]),
            device=settings["device"],
            command=shlex.join(["modicum", *sys.argv[1:]]),
            progress=bar,
            **chosen,
        )
    page = write_depth_report(comparison, images, settings["out"] or Path(settings["directory"]) / "report")
    if settings["as_json"]:
        print(comparison.model_dump_json(indent=2))
    screen.print(depth_table(comparison))
    screen.print(f"Report  {page}", soft_wrap=True)
