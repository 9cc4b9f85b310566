"""Readings to words: one bin per reading, said as a sentence for a text-to-image model or as tokens for a small one.

Both come from the same bins, so a generator that reads tokens and one that reads text are told the same thing. Token
0 of every position is "unknown"; the sentence leaves unknown readings out. Temperature and light are binned as
proposed for the original's prompt; humidity and sound are our own bins.

A local language model may rewrite the sentence (`rewritten`). The rewriting is decoration: tokens never depend on it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from modicum.apps.pixelgen.readings import Readings

UNKNOWN = 0
NEW_TOKENS = 48


@dataclass(frozen=True)
class Scale:
    """Bins of one reading: bin i ends below `edges[i]`, the last is open.

    Attributes:
        reading: the field of `Readings`.
        edges: increasing; one less than words.
        words: what each bin is called.
    """

    reading: str
    edges: tuple[float, ...]
    words: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of tokens: the bins and "unknown"."""
        return len(self.words) + 1

    def token(self, readings: Readings) -> int:
        """The bin of a reading, counted from 1; 0 if it is unknown or not a number."""
        value = getattr(readings, self.reading)
        if value is None or math.isnan(value):
            return UNKNOWN
        return bisect_right(self.edges, value) + 1

    def word(self, readings: Readings) -> str:
        """The name of the bin; empty if unknown."""
        return ("", *self.words)[self.token(readings)]


TEMPERATURE = Scale("temperature", (0, 15, 26, 33), ("freezing", "cold", "mild", "warm", "hot"))
HUMIDITY = Scale("humidity", (30, 60, 80), ("dry", "comfortable", "humid", "damp"))
LIGHT = Scale(
    "lux", (10, 400, 2000), ("at night", "in dim indoor light", "under an overcast sky", "in daylight")
)
LOUDNESS = Scale("level", (30, 50, 70), ("silence", "quiet sound", "lively sound", "loud sound"))
PITCH = Scale("frequency", (250, 2000), ("low", "middle", "high"))


class SensorTokens:
    """The vocabulary: one position per scale, `sizes[i]` tokens in position i, 0 meaning unknown."""

    scales: ClassVar[tuple[Scale, ...]] = (TEMPERATURE, HUMIDITY, LIGHT, LOUDNESS, PITCH)
    names: ClassVar[tuple[str, ...]] = tuple(scale.reading for scale in scales)
    sizes: ClassVar[tuple[int, ...]] = tuple(scale.size for scale in scales)


def tokens(readings: Readings) -> list[int]:
    """One token per position of `SensorTokens`; 0 where nothing is known."""
    return [scale.token(readings) for scale in SensorTokens.scales]


def sentence(readings: Readings) -> str:
    """The readings in words: "A photograph in daylight, hot and dry air, loud sound of high pitch"."""
    light, sound = LIGHT.word(readings), LOUDNESS.word(readings)
    air = " and ".join(filter(None, (TEMPERATURE.word(readings), HUMIDITY.word(readings))))
    if sound and (pitch := PITCH.word(readings)) and sound != LOUDNESS.words[0]:
        sound += f" of {pitch} pitch"
    parts = (f"A photograph {light}".rstrip(), f"{air} air" if air else "", sound)
    return ", ".join(filter(None, parts))


def rewritten(text: str, model: str | Path, device: str = "cpu") -> str:
    """The sentence as a local causal language model goes on from it, greedily; the sentence itself stays in front.

    Args:
        text: what `sentence` said.
        model: a directory, a nano model's name, or a hub id.
        device: where the model runs.
    """
    import torch

    from modicum.api import load
    from modicum.pipeline.loading import load_tokenizer
    from modicum.zoo.locate import locate

    tokenizer, network = load_tokenizer(locate(model)), load(model, device=device)
    prompt = tokenizer(f"{text}. In the picture one sees", return_tensors="pt").to(device)
    with torch.no_grad():
        written = network.generate(**prompt, max_new_tokens=NEW_TOKENS, do_sample=False)  # type: ignore[operator]
    return tokenizer.decode(written[0], skip_special_tokens=True)
