"""Speed: tokens per second of several models, timed in pairs.

A machine's speed drifts: clocks, heat and other programs move a timing by far more than most compressions do.
So the models take turns (A B A B ...) and every round yields one ratio, in which the drift cancels; the
medians over the rounds are reported together with the lowest and the highest.

Prefill is one pass over the prompt, compute-bound; decode is one token at a time with the key-value cache,
bound by the bytes of the weights. Compression moves the two differently, hence two numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from modicum.errors import InvalidSetting, UnusableData
from modicum.evaluate.generation import forward_step
from modicum.evaluate.inference import check_context, device_of, evaluating


@dataclass(frozen=True)
class Spread:
    """A measured quantity over several rounds: the median, the lowest and the highest."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of one value per round."""
        values = list(values)
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Tokens per second of one model, and round-by-round ratios to the first model (itself: 1)."""

    prefill: Spread
    decode: Spread
    prefill_ratio: Spread
    decode_ratio: Spread


def paired_speed(
    models: Mapping[str, nn.Module],
    tokens: Tensor,
    prefill_tokens: int,
    decode_tokens: int,
    rounds: int = 5,
) -> dict[str, Speed]:
    """Times reading a prompt and greedily continuing it, all models in turn, after one round to warm up.

    Args:
        models: causal language models of transformers by name; ratios are to the first.
        tokens: Tensor [n], a text; its first `prefill_tokens` are the prompt.
        prefill_tokens: length of the prompt.
        decode_tokens: tokens decoded one by one after it.
        rounds: timed rounds; each runs every model once.

    Raises:
        UnusableData: the text is shorter than the prompt.
        InvalidSetting: nothing to time, or more tokens than a model's context takes.
    """
    if min(prefill_tokens, decode_tokens, rounds) < 1 or not models:
        raise InvalidSetting(
            f"Nothing to time with {len(models)} model(s), prefill_tokens={prefill_tokens}, "
            f"decode_tokens={decode_tokens}, rounds={rounds}.",
            "Use 1 or more of each.",
        )
    if len(tokens) < prefill_tokens:
        raise UnusableData(
            f"The text has {len(tokens)} tokens; the prompt takes {prefill_tokens}.", "Use a longer text."
        )
    for model in models.values():
        check_context(model, prefill_tokens + decode_tokens, "prefill and decode")
    prompt = tokens[None, :prefill_tokens]  # [1, prefill_tokens]
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    with evaluating(*models.values()):
        for _ in range(1 + rounds):
            for name, model in models.items():
                seconds[name].append(timed_generation(model, prompt, decode_tokens))
    rates = {
        name: [
            (prefill_tokens / p, decode_tokens / d) for p, d in timings[1:]
        ]  # [1:]: the first round warmed up
        for name, timings in seconds.items()
    }
    first = next(iter(rates.values()))
    return {name: _speed(rate, first) for name, rate in rates.items()}


def timed_generation(model: nn.Module, prompt: Tensor, decode_tokens: int) -> tuple[float, float]:
    """Seconds to read `prompt` [1, positions] and to decode `decode_tokens` greedily after it."""
    device = device_of(model)
    inputs = prompt.to(device)
    start = _now(device)
    logits, cache = forward_step(model, inputs)
    read = _now(device)
    for _ in range(decode_tokens):
        logits, cache = forward_step(model, logits.argmax().view(1, 1), cache)
    return read - start, _now(device) - read


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def _speed(rates: list[tuple[float, float]], first: list[tuple[float, float]]) -> Speed:
    return Speed(
        prefill=Spread.of(prefill for prefill, _ in rates),
        decode=Spread.of(decode for _, decode in rates),
        prefill_ratio=Spread.of(own[0] / base[0] for own, base in zip(rates, first, strict=True)),
        decode_ratio=Spread.of(own[1] / base[1] for own, base in zip(rates, first, strict=True)),
    )
