"""`modicum generate`: text or images, as the model has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from modicum.cli import image_options as images
from modicum.cli import options
from modicum.errors import InvalidSetting

TEXT, MAPS, NOISE = "writes text", "draws images map by map", "draws images out of noise"
TAKERS = {  # options that not every model takes
    **dict.fromkeys(("tokens", "temperature"), (TEXT,)),
    "top_p": (TEXT, MAPS),
    **dict.fromkeys(("label", "count", "at_once", "cfg", "out", "overwrite"), (MAPS, NOISE)),
    **dict.fromkeys(("prompt", "negative", "features", "text_encoder", "top_k", "tau", "ratio", "pixels"), (MAPS,)),
    **dict.fromkeys(("kv", "budget", "policy", "save_policy"), (MAPS,)),
    **dict.fromkeys(("set_", "no_policy"), (MAPS, NOISE)),
    **dict.fromkeys(("steps", "sampler", "iterations", "vae", "step_cache"), (NOISE,)),
}  # fmt: skip
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
StepCache = Annotated[
    str | None,
    typer.Option(
        "--step-cache", help="Reuse between steps, such as fora (DiT, SiT).", rich_help_panel=images.CACHE
    ),
]
NoPolicy = Annotated[
    bool,
    typer.Option(
        "--no-policy", help="Leave out the policies beside the weights.", rich_help_panel=images.CACHE
    ),
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
    steps: images.Steps = None,
    sampler: images.Sampler = None,
    iterations: images.Iterations = None,
    vae: images.Vae = None,
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
    step_cache: StepCache = None,
    no_policy: NoPolicy = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Continue a text, or draw images: what the model does. A cache policy makes drawing cheaper.

    Policies that a recipe saved beside the weights are used unless others are named, or --no-policy is given.
    Image i is drawn from seed SEED + i, whatever else is drawn beside it. With --save-policy and without --out a
    policy is only fitted.
    """
    given = {name: value for name, value in context.params.items() if value not in (None, False, [], ())}
    does, act = _kind(model)
    _refuse(given, model, does)
    act(given)


def _kind(model: str) -> tuple[str, Callable[[dict[str, Any]], None]]:
    """What a model does, and what does it."""
    from modicum.cli import denoising, drawing
    from modicum.models.class_models import class_kind
    from modicum.models.image_models import image_kind
    from modicum.zoo.locate import locate

    directory = locate(model)
    if image_kind(directory) is not None:
        return MAPS, drawing.draw
    return (NOISE, denoising.draw) if class_kind(directory) else (TEXT, write)


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


def _refuse(given: dict[str, Any], model: str, does: str) -> None:
    """Refuse options that belong to another kind of model."""
    for name, takers in TAKERS.items():
        if name in given and does not in takers:
            option = "--" + name.strip("_").replace("_", "-")
            raise InvalidSetting(
                f"{option} is for a model that {' or '.join(takers)}; {Path(model).name} {does}.",
                "Leave it out.",
            )
