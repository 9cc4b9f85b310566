"""Running a model without changing it: evaluation mode, its device, and how many tokens it can take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn

from modicum.errors import InvalidSetting


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Dropout off and no gradients inside; every module's training flag is put back afterwards."""
    training = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, flag in training:
            module.training = flag


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU for a model that has neither."""
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def context_length(model: nn.Module) -> int | None:
    """The most tokens that the model's config allows, or None if it states no limit."""
    return getattr(_text_config(model), "max_position_embeddings", None)


def vocabulary_size(model: nn.Module) -> int | None:
    """The number of tokens that the model's config states, i.e. the width of its logits."""
    return getattr(_text_config(model), "vocab_size", None)


def check_context(model: nn.Module, tokens: int, setting: str) -> None:
    """Refuses a `setting` that would feed more tokens than the model has positions for.

    Raises:
        InvalidSetting: `tokens` exceeds the context length of the model.
    """
    limit = context_length(model)
    if limit is not None and tokens > limit:
        raise InvalidSetting(
            f"{setting} asks for {tokens} tokens at once; the model has positions for {limit}.",
            f"Use {limit} or fewer.",
        )


def _text_config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    of_text = getattr(config, "get_text_config", None)  # models that also see or hear nest their settings
    return of_text() if of_text else config
