"""On a trained model, the methods rank as their papers say: nano-lm, held-out text, little data.

Each measurement compresses the model in memory (32 windows of 256 tokens) and scores 8192 held-out tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache

import pytest
import torch

import modicum
from modicum import zoo
from modicum.data.text import load_text
from modicum.data.windows import token_stream, windows
from modicum.evaluate.perplexity import perplexity
from modicum.method import Method
from modicum.pipeline.loading import load_tokenizer
from modicum.prune.magnitude import Magnitude
from modicum.prune.sparsegpt import SparseGPT
from modicum.prune.wanda import Wanda
from modicum.quantize.awq import AWQ
from modicum.quantize.gptq import GPTQ
from modicum.quantize.rtn import RTN

WINDOW = 512


@pytest.fixture(scope="module")
def price() -> Callable[..., float]:
    """`price(method, ...)` is the held-out perplexity after these steps; each is computed once."""
    directory = zoo.path("nano-lm")
    tokenizer = load_tokenizer(directory)
    dense = modicum.load(directory, dtype=torch.float32)
    data = windows(load_text("stdlib", "train")[:200], tokenizer, 256, 32, 0)
    text = token_stream(load_text("stdlib", "heldout"), tokenizer, 8192)

    @cache
    def measured(*steps: Method) -> float:
        model = modicum.compress(deepcopy(dense), list(steps), data=data) if steps else dense
        return perplexity(model, text, WINDOW).ppl

    return measured
