"""`modicum generate`."""

from __future__ import annotations

from typing import Annotated

import typer

from modicum.cli import options


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("generate", epilog='modicum generate nano-lm "def read_" --tokens 60')(generate)


def generate(
    model: options.Model,
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="At most so many new tokens.")] = 80,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option("--top-p", min=0.0, max=1.0, help="Draw from this share of the mass.")
    ] = 1.0,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Continue a text with a model, compressed or not."""
    from modicum import api
    from modicum.cli.console import console, print_json
    from modicum.evaluate.generation import continue_text
    from modicum.pipeline.loading import load_tokenizer
    from modicum.zoo.locate import locate

    loaded = api.load(model, dtype=options.torch_dtype(dtype), device=device)
    tokenizer = load_tokenizer(locate(model))
    text = continue_text(loaded, tokenizer, prompt, tokens, temperature=temperature, top_p=top_p, seed=seed)
    if as_json:
        print_json({"prompt": prompt, "text": text})
    console(quiet, as_json).print(prompt + text, markup=False, soft_wrap=True)
