"""The calibration windows of a recipe: text or a token file, cut to the context of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modicum.data.text import load_text
from modicum.data.windows import windows
from modicum.errors import UnusableData
from modicum.formats.shards import Shards
from modicum.pipeline.recipe import Calibration


def calibration_tokens(calibration: Calibration, tokenizer: Any, context: int | None, seed: int) -> Tensor:
    """Token windows, int64 [samples, length], the same for the same seed.

    Args:
        calibration: where from and how many.
        tokenizer: of the model; not needed for a token file.
        context: the longest window that the model takes.
        seed: of the drawing.

    Raises:
        UnusableData: the text is missing, empty, or shorter than one window.
    """
    length = min(calibration.length, context or calibration.length)
    if calibration.source.endswith(".safetensors"):
        return _from_file(Path(calibration.source), calibration.samples, length)
    texts = load_text(calibration.source, "train")
    return windows(texts, tokenizer, length, calibration.samples, seed)


def _from_file(file: Path, samples: int, length: int) -> Tensor:
    shards = Shards(file)
    name = shards.names()[0] if len(shards.names()) == 1 else "tokens"
    tokens = shards.read(name) if name in shards else torch.empty(0)
    if (
        tokens.dim() != 2
        or tokens.is_floating_point()
        or tokens.shape[0] < samples
        or tokens.shape[1] < length
    ):
        raise UnusableData(
            f"{file} does not hold {samples} windows of {length} token ids.",
            "It needs one integer tensor [windows, length] named tokens.",
        )
    return tokens[:samples, :length].to(torch.int64)


def check_tokens(tokens: Tensor, vocabulary: int | None) -> None:
    """Refuse windows that the model cannot read.

    Raises:
        UnusableData: not int64 [windows, length], or an id that the vocabulary does not have.
    """
    if tokens.dim() != 2 or tokens.dtype != torch.int64 or not tokens.numel():
        raise UnusableData(
            f"The calibration windows are {tokens.dtype} {list(tokens.shape)}.",
            "They must be int64 [windows, length], one window at least.",
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or (vocabulary is not None and high >= vocabulary):
        raise UnusableData(
            f"The calibration data holds the token id {low if low < 0 else high}; the model has {vocabulary} tokens.",
            "Use the tokenizer that belongs to the model.",
        )
