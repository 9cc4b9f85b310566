"""Perplexity: how surprised a language model is by a text, the usual one-number price of compression.

    ppl = exp( -1/N * sum_i log p(token_i | the tokens before it in its window) )

The papers (GPTQ, SparseGPT, Wanda, ...) cut the text into side-by-side windows of the model's context length,
which is the default here. Two small departures, both to weigh every token equally: a window's first token is
scored by the window before it instead of being dropped, and the shorter tail counts with the tokens that it
has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from modicum.errors import InvalidSetting, NotFinite
from modicum.evaluate.inference import check_context, device_of, evaluating
from modicum.evaluate.windows import batches, token_chunks, windows
from modicum.kernels.products import widened_products

Progress = Callable[[int, int], None]  # (windows done, windows in all)


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """The result of `perplexity`.

    Attributes:
        nll_per_token: mean negative log-likelihood, nats per token.
        ppl: exp(nll_per_token); infinity where that overflows.
        tokens: predictions scored, one fewer than the tokens of the text.
        windows: forward passes of one window each.
        bits_per_byte: total bits over the bytes of the text, if those were given; comparable across
            tokenizers.
    """

    nll_per_token: float
    ppl: float
    tokens: int
    windows: int
    bits_per_byte: float | None = None


def perplexity(
    model: nn.Module,
    tokens: Tensor,
    window: int,
    stride: int | None = None,
    batch: int = 8,
    text_bytes: int | None = None,
    progress: Progress | None = None,
) -> Perplexity:
    """Scores every token of a text after the first exactly once.

    Args:
        model: a causal language model of transformers.
        tokens: Tensor [n], the text.
        window: positions fed at once.
        stride: positions from one window to the next; None for `window`, i.e. side by side.
        batch: windows per forward pass; only one batch of logits is ever held.
        text_bytes: length of the text in UTF-8, for bits per byte.
        progress: called after each batch.

    Raises:
        UnusableData: fewer than two tokens.
        InvalidSetting: a window longer than the model's context, a stride outside 1..window, or no bytes in
            the text.
        NotFinite: the model returned NaN, or gave a token that occurred no probability at all.
    """
    check_context(model, min(window, len(tokens) - 1), "window")
    if text_bytes is not None and text_bytes < 1:
        raise InvalidSetting(
            f"text_bytes={text_bytes} is not the length of a text.", "Give the bytes in UTF-8."
        )
    total, scored, done = 0.0, 0, 0
    count = len(windows(len(tokens), window, stride))
    with evaluating(model):
        for inputs, targets in batches(tokens, window, stride, batch):
            total += _nll(model, inputs.to(device_of(model)), targets)
            scored, done = scored + targets.numel(), done + len(inputs)
            if not math.isfinite(total):
                raise NotFinite(
                    f"The loss is {total} by window {done} of {count}: the model's logits are not finite.",
                    "Look for NaN in the weights, or run it in bfloat16 or float32 instead of float16.",
                )
            if progress:
                progress(done, count)
    return _result(total, scored, count, text_bytes)


def _nll(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """The summed loss of one batch: `inputs` [windows, positions], `targets` [windows, scored], in nats."""
    with widened_products():
        logits = model(input_ids=inputs, use_cache=False).logits
    logits = logits[:, -targets.shape[1] :]  # [windows, scored, vocabulary]
    logits = logits.flatten(0, 1)  # [windows * scored, vocabulary]
    targets = targets.flatten().to(logits.device)  # [windows * scored]
    return sum(
        F.cross_entropy(logits[part].float(), targets[part], reduction="none").double().sum().item()
        for part in token_chunks(*logits.shape)
    )


def _result(total: float, scored: int, count: int, text_bytes: int | None) -> Perplexity:
    nll = total / scored
    return Perplexity(
        nll_per_token=nll,
        ppl=math.exp(nll) if nll < math.log(1e308) else math.inf,
        tokens=scored,
        windows=count,
        bits_per_byte=total / math.log(2) / text_bytes if text_bytes else None,
    )
