"""Text of prompts: as features, and the encoder that makes them.

Infinity reads what the encoder of flan-t5-xl makes of a prompt: one vector per token, end of sentence included. The
encoder is larger than the model's transformer at 2B; features can be computed once and kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from modicum.errors import CheckpointError, InvalidSetting
from modicum.models.infinity.config import InfinityConfig


@dataclass(frozen=True)
class TextFeatures:
    """Features of several prompts of different lengths.

    Attributes:
        values: rows of all prompts one after the other, float `[sum of lengths, channels]`.
        lengths: tokens of each prompt.

    Raises:
        InvalidSetting: no prompt, one without tokens, or lengths that do not add up.
    """

    values: Tensor
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise InvalidSetting(
                f"Prompts of {list(self.lengths)} tokens.", "Give at least one token to each."
            )
        if self.values.dim() != 2 or len(self.values) != sum(self.lengths):
            raise InvalidSetting(
                f"Text features of shape {list(self.values.shape)} are not those of prompts of "
                f"{list(self.lengths)} tokens.",
                "Give one row per token, [tokens of all prompts, channels].",
            )

    @classmethod
    def of(cls, prompts: Sequence[Tensor]) -> TextFeatures:
        """From one `[tokens, channels]` per prompt."""
        return cls(torch.cat(list(prompts)), tuple(map(len, prompts)))

    @classmethod
    def joined(cls, parts: Sequence[TextFeatures]) -> TextFeatures:
        """The prompts of all parts."""
        return cls.of([rows for part in parts for rows in part.values.split(part.lengths)])

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device) -> TextFeatures:
        """The same on a device."""
        return TextFeatures(self.values.to(device), self.lengths)

    def repeat(self, count: int) -> TextFeatures:
        """Every prompt `count` times in a row.

        Raises:
            InvalidSetting: less than once.
        """
        if count < 1:
            raise InvalidSetting(f"count is {count}.", "Ask for 1 image or more.")
        return TextFeatures.of([rows for rows in self.values.split(self.lengths) for _ in range(count)])

    def opposite(self, negative: TextFeatures | None, learned: Tensor) -> TextFeatures:
        """What guidance leads away from.

        Args:
            negative: one for all prompts or one for each; None takes the learned text.
            learned: "no text", `[most tokens, channels]`; cut to the length of each prompt.

        Raises:
            InvalidSetting: another number of negative prompts.
        """
        if negative is None:
            return TextFeatures.of([learned[:length] for length in self.lengths])
        if len(negative) == 1:
            return negative.repeat(len(self))
        if len(negative) != len(self):
            raise InvalidSetting(
                f"{len(negative)} negative prompts for {len(self)} prompts.",
                "Give one for all, or one for each.",
            )
        return negative

    def padded(self) -> tuple[Tensor, Tensor | None]:
        """One row per prompt, `[B, T, channels]`, and a mask bool `[B, T]`, False where padded with zeros.

        There is no mask if all prompts are equally long.
        """
        values = pad_sequence(self.values.split(self.lengths), batch_first=True)
        if len(set(self.lengths)) == 1:
            return values, None
        lengths = torch.tensor(self.lengths, device=values.device)
        return values, torch.arange(values.shape[1], device=values.device) < lengths[:, None]


class TextEncoder:
    """The encoder half of a T5 model, with its tokenizer.

    Args:
        directory: with both, as transformers saves them (flan-t5-xl for the published models).
        device: where it runs.
        max_tokens: most tokens of a prompt.

    Raises:
        CheckpointError: the directory does not hold a T5 model.
    """

    def __init__(
        self, directory: str | Path, *, device: str | torch.device = "cpu", max_tokens: int = 512
    ) -> None:
        from transformers import AutoTokenizer, T5EncoderModel

        self.device, self.max_tokens = torch.device(device), max_tokens
        dtype = torch.float32 if self.device.type == "cpu" else torch.float16  # as published
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True)
            model: Any = T5EncoderModel.from_pretrained(directory, local_files_only=True, dtype=dtype)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{directory} cannot be opened as a T5 encoder: {' '.join(str(error).split())[:200]}",
                "Give a directory with flan-t5-xl and its tokenizer.",
            ) from error
        self.model = model.eval().to(self.device)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of prompts, float32.

        Raises:
            InvalidSetting: no prompt, or one with too many tokens.
        """
        if not prompts:
            raise InvalidSetting("There is no prompt.", "Give at least one.")
        lengths = [len(tokens) for tokens in self.tokenizer(list(prompts)).input_ids]
        for prompt, length in zip(prompts, lengths, strict=True):
            if length > self.max_tokens:
                raise InvalidSetting(
                    f"The prompt {prompt[:40]!r}... has {length} tokens; the model reads {self.max_tokens}.",
                    "Shorten it.",
                )
        batch = self.tokenizer(list(prompts), padding=True, return_tensors="pt").to(self.device)
        states = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        return TextFeatures(states[batch.attention_mask.bool()].float(), tuple(lengths))


Prompts = str | Sequence[str] | TextFeatures


def features_of(prompts: Prompts, encoder: TextEncoder | None, config: InfinityConfig) -> TextFeatures:
    """Features of prompts, checked against the model.

    Args:
        prompts: one, several, or features already.
        encoder: needed for strings.
        config: of the model.

    Raises:
        InvalidSetting: strings without an encoder; too many tokens; features of another encoder.
    """
    if not isinstance(prompts, TextFeatures):
        if encoder is None:
            raise InvalidSetting(
                "This model has no text encoder, so it cannot read prompts.",
                "Load it with text_encoder=DIRECTORY of flan-t5-xl, or give TextFeatures.",
            )
        prompts = encoder.encode([prompts] if isinstance(prompts, str) else prompts)
    if prompts.values.shape[1] != config.text_channels:
        raise InvalidSetting(
            f"Text features have {prompts.values.shape[1]} channels; the model reads {config.text_channels}.",
            "Use the text encoder that the model was trained with.",
        )
    if max(prompts.lengths) > config.text_maxlen:
        raise InvalidSetting(
            f"A prompt has {max(prompts.lengths)} tokens; the model reads {config.text_maxlen}.",
            "Shorten it.",
        )
    return prompts
