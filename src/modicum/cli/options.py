"""Options that several commands share, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modicum.errors import InvalidSetting

if TYPE_CHECKING:
    import torch

Model = Annotated[str, typer.Argument(help="A model directory, a nano model's name, or a hub id.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
Device = Annotated[str, typer.Option("--device", help="Where to work: cpu, cuda, cuda:1 …")]
Dtype = Annotated[str, typer.Option("--dtype", help="Compute dtype: auto, float32, bfloat16 or float16.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The directory to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace --out if it exists.")]
Text = Annotated[
    str,
    typer.Option("--text", help="Evaluation text (its held-out part): stdlib, a file or folder, hf:DATASET."),
]
Tokens = Annotated[int, typer.Option("--tokens", min=2, help="Tokens of evaluation text.")]

DTYPES = ("auto", "float32", "bfloat16", "float16")


def torch_dtype(name: str) -> torch.dtype | None:
    """The torch dtype of an option's value; None for auto.

    Raises:
        InvalidSetting: not one of the dtypes that models are computed in.
    """
    if name not in DTYPES:
        raise InvalidSetting(
            f"--dtype {name!r} is not a compute dtype.", f"Choose one of {', '.join(DTYPES)}."
        )
    import torch

    return None if name == "auto" else getattr(torch, name)
