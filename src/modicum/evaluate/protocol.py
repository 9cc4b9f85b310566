"""The settings of a measurement, without which a perplexity or a speed cannot be repeated."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import nn

from modicum.evaluate.inference import context_length, vocabulary_size

LOGITS_AT_ONCE = 2**28  # half a gigabyte in bfloat16, for each of the two models that are compared


class Protocol(BaseModel):
    """How a Comparison measures.

    Attributes:
        window: positions per perplexity window.
        stride: positions from one window to the next; None for side by side.
        batch: windows per forward pass.
        prefill_tokens: length of the prompt for speed and peak memory.
        decode_tokens: tokens decoded after it.
        rounds: paired speed rounds.
        sample_tokens: the most tokens of each sample text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: PositiveInt = 2048
    stride: PositiveInt | None = None
    batch: PositiveInt = 8
    prefill_tokens: PositiveInt = 256
    decode_tokens: PositiveInt = 32
    rounds: PositiveInt = 9
    sample_tokens: PositiveInt = 48

    @classmethod
    def fitting(cls, model: nn.Module, tokens: int) -> Protocol:
        """The defaults, cut down to the context and vocabulary of `model` and to a text of `tokens`."""
        defaults = cls()
        context = context_length(model) or defaults.window
        window = min(defaults.window, context)
        decode_tokens = max(1, min(defaults.decode_tokens, context // 4))
        return cls(
            window=window,
            batch=max(1, min(defaults.batch, LOGITS_AT_ONCE // (window * (vocabulary_size(model) or 1)))),
            prefill_tokens=max(1, min(defaults.prefill_tokens, tokens, context - decode_tokens)),
            decode_tokens=decode_tokens,
            sample_tokens=max(1, min(defaults.sample_tokens, context // 2)),
        )
