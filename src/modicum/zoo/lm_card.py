"""The figures of a nano language model, for people (the card) and for tests (`metrics.json`)."""

from __future__ import annotations

import hashlib
import math
import platform
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modicum.data import contiguous_windows, load_text, token_stream
from modicum.zoo.ngram import KneserNey

SAMPLE_TOKENS = 16384  # of held-out passages: a figure that takes seconds to check


def heldout_loss(model: Any, stream: Tensor) -> float:
    """Mean negative log-likelihood of a stream, in nats per token, in windows of the model's context.

    Args:
        model: a transformers causal language model.
        stream: ids `[n]`.
    """
    total, count = 0.0, 0
    for window in contiguous_windows(stream.long(), model.config.max_position_embeddings):
        with torch.inference_mode():
            logits = model(input_ids=window[None], use_cache=False).logits[0]  # [length, vocab]
        total += F.cross_entropy(logits[:-1].float(), window[1:], reduction="sum").item()
        count += window.numel() - 1
    return total / count


def digest(stream: Tensor) -> str:
    """Short fingerprint of token ids: another version of Python brings another standard library."""
    return hashlib.sha256(stream.to(torch.int32).numpy().tobytes()).hexdigest()[:16]


def measure(model: Any, tokenizer: Any, streams: dict[str, Tensor]) -> dict[str, Any]:
    """Quality on the held-out documents, of the model and of a 5-gram model on the same tokens.

    Args:
        model: a transformers causal language model.
        tokenizer: of the model.
        streams: "train" and "heldout" ids.
    """
    loss = heldout_loss(model, streams["heldout"])
    documents = {name: int((ids == tokenizer.eos_token_id).sum()) + 1 for name, ids in streams.items()}
    text = tokenizer.decode(streams["heldout"].tolist(), skip_special_tokens=True)
    size = len(text.encode())
    sample = token_stream(load_text(None, "heldout"), tokenizer, SAMPLE_TOKENS)
    counts = KneserNey(streams["train"].numpy(), model.config.vocab_size)
    return {
        "parameters": model.num_parameters(),
        "train_tokens": streams["train"].numel(),
        "train_documents": documents["train"],
        "heldout_tokens": streams["heldout"].numel(),
        "heldout_documents": documents["heldout"],
        "heldout_bytes": size,
        "heldout_loss": loss,
        "perplexity": math.exp(loss),
        "bits_per_byte": loss * streams["heldout"].numel() / size / math.log(2),
        "ngram_heldout_loss": counts.loss(streams["heldout"].numpy()),
        "sample_tokens": sample.numel(),
        "sample_digest": digest(sample),
        "sample_loss": heldout_loss(model, sample),
        "ngram_sample_loss": counts.loss(sample.numpy()),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [modicum, nano, code]
---
# nano-lm

A Llama of {parameters:,} parameters that writes Python: small enough to travel inside a package, trained
enough to have something to lose. It exists to try, test and teach the compression of language models without
a download.

| | |
|---|---|
| Data | standard library of Python {python} and its reference pages: {train_tokens:,} tokens |
| Documents | {train_documents} for training, {heldout_documents} held out by the hash of their name |
| Held out | {heldout_tokens:,} tokens, {heldout_bytes:,} bytes |
| Vocabulary | {vocab} byte-level BPE tokens, trained on the training documents |
| Training | {steps:,} steps, {tokens_trained:,} tokens, {minutes} minutes on one busy CPU core, torch {torch} |
| Weights | bfloat16 |

| on the held-out documents | nats per token | perplexity | bits per byte |
|---|---|---|---|
| nano-lm | {heldout_loss:.4f} | {perplexity:.2f} | {bits_per_byte:.3f} |
| 5-gram, Kneser-Ney | {ngram_heldout_loss:.4f} | {ngram_perplexity:.2f} | {ngram_bits_per_byte:.3f} |

Both learned from the same documents. The evaluation reads windows of {context} tokens that do not overlap. A quick
check: the first {sample_tokens:,} tokens of `load_text(None, "heldout")` give {sample_loss:.4f}. The figures
are in `metrics.json` too.

Train it again:

```
{command}
```

It has seen nothing but the standard library: it continues Python and its documentation plausibly, and knows
nothing. The text it was trained on is under the PSF licence.
"""


def card(metrics: dict[str, Any]) -> str:
    """The model card, in Markdown."""
    ratio = metrics["ngram_heldout_loss"] / metrics["heldout_loss"]
    return CARD.format(
        ngram_perplexity=math.exp(metrics["ngram_heldout_loss"]),
        ngram_bits_per_byte=metrics["bits_per_byte"] * ratio,
        **metrics,
    )
