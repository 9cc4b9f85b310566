"""The settings of a measurement, without which a perplexity or a speed cannot be repeated."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import nn

from modicum.evaluate.inference import context_length


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
        """The defaults, cut down to the context of `model` and to a text of `tokens` tokens."""
        defaults = cls()
        context = context_length(model) or defaults.window
        decode_tokens = max(1, min(defaults.decode_tokens, context // 4))
        return cls(
            window=min(defaults.window, context),
            prefill_tokens=max(1, min(defaults.prefill_tokens, tokens, context - decode_tokens)),
            decode_tokens=decode_tokens,
            sample_tokens=max(1, min(defaults.sample_tokens, context // 2)),
        )
