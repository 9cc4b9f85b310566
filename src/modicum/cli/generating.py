"""`modicum generate`: text or images, as the model has it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modicum.cli import image_options as images
from modicum.cli import options
from modicum.errors import InvalidSetting

TEXT_ONLY = ("tokens", "temperature")
IMAGES_ONLY = (
    "label", "prompt", "negative", "features", "text_encoder", "count", "at_once", "cfg", "top_k", "tau", "ratio",
    "pixels", "kv", "budget", "set_", "policy", "save_policy", "out", "overwrite",
)  # fmt: skip
TOKENS = 80

Kv = Annotated[
    str | None,
    typer.Option(
        "--kv", help="Cache policy, such as scalekv; see `modicum methods`.", rich_help_panel=images.CACHE
    ),
]
Budget = Annotated[
    str | None,
    typer.Option("--budget", help="Of the policy: 10%, 650 (tokens) or 8GB.", rich_help_panel=images.CACHE),
]
Policy = Annotated[
    Path | None,
    typer.Option(
        "--policy", help="A policy that was saved, or a published budget file.", rich_help_panel=images.CACHE
    ),
]
SavePolicy = Annotated[
    Path | None,
    typer.Option("--save-policy", help="Write the fitted policy (.json).", rich_help_panel=images.CACHE),
]


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("generate", epilog='modicum generate nano-lm "def read_" --tokens 60')(generate)


def generate(
    context: typer.Context,
    model: options.Model,
    text: Annotated[str | None, typer.Argument(help="The text to continue, or to draw.")] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="At most so many new tokens (80).")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token (0).")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", min=0.0, max=1.0, help="Draw from this share of the mass.")
    ] = None,
    label: images.Label = None,
    prompt: images.Prompt = None,
    negative: images.Negative = None,
    features: images.Features = None,
    text_encoder: images.TextEncoder = None,
    count: images.Count = None,
    at_once: images.AtOnce = None,
    cfg: images.Cfg = None,
    top_k: images.TopK = None,
    tau: images.Tau = None,
    ratio: images.Ratio = None,
    pixels: images.Pixels = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write the images (.png).", rich_help_panel=images.IMAGES),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that exist.", rich_help_panel=images.IMAGES)
    ] = False,
    kv: Kv = None,
    budget: Budget = None,
    set_: images.Settings = None,
    policy: Policy = None,
    save_policy: SavePolicy = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Continue a text, or draw images: what the model does. A cache policy makes drawing cheaper.

    Image i is drawn from seed SEED + i, whatever else is drawn beside it. With --save-policy and without --out a
    policy is only fitted.
    """
    from modicum.cli.drawing import draw
    from modicum.models.image_models import image_kind
    from modicum.zoo.locate import locate

    given = {name: value for name, value in context.params.items() if value not in (None, False, [], ())}
    if image_kind(locate(model)) is None:
        _refuse(given, IMAGES_ONLY, "draws images", model, "writes text")
        write(given)
    else:
        _refuse(given, TEXT_ONLY, "writes text", model, "draws images")
        draw(given)


def write(given: dict[str, Any]) -> None:
    """Continue a text with a language model, compressed or not."""
    from modicum import api
    from modicum.cli.console import console, print_json
    from modicum.evaluate.generation import continue_text
    from modicum.pipeline.loading import load_tokenizer
    from modicum.zoo.locate import locate

    model, text, as_json = given["model"], given.get("text"), given.get("as_json", False)
    if text is None:
        raise InvalidSetting("Nothing to continue.", f'For example: modicum generate {model} "def read_"')
    loaded = api.load(model, dtype=options.torch_dtype(given["dtype"]), device=given["device"])
    added = continue_text(
        loaded,
        load_tokenizer(locate(model)),
        text,
        given.get("tokens", TOKENS),
        temperature=given.get("temperature", 0.0),
        top_p=given.get("top_p", 1.0),
        seed=given.get("seed", 0),
    )
    if as_json:
        print_json({"prompt": text, "text": added})
    console(given.get("quiet", False), as_json).print(text + added, markup=False, soft_wrap=True)


def _refuse(given: dict[str, Any], names: tuple[str, ...], does: str, model: str, instead: str) -> None:
    """Refuse options that belong to the other kind of model."""
    for name in names:
        if name in given:
            option = "--" + name.strip("_").replace("_", "-")
            raise InvalidSetting(
                f"{option} is for a model that {does}; {Path(model).name} {instead}.", "Leave it out."
            )
