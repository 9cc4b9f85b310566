"""On a trained model, the methods rank as their papers say: nano-lm, held-out text, little data.

Each measurement compresses the model in memory (16 windows of 256 tokens) and scores 8192 held-out tokens.
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
from modicum.prune.ace import ACE
from modicum.prune.magnitude import Magnitude
from modicum.prune.pruner_zero import PrunerZero
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
    data = windows(load_text("stdlib", "train"), tokenizer, 256, 16, 0)
    text = token_stream(load_text("stdlib", "heldout"), tokenizer, 8192)

    @cache
    def measured(*steps: Method) -> float:
        model = modicum.compress(deepcopy(dense), list(steps), data=data) if steps else dense
        return perplexity(model, text, WINDOW).ppl

    return measured


def test_half_of_the_weights(price: Callable[..., float]) -> None:
    by_size, by_score, corrected = price(Magnitude()), price(Wanda()), price(SparseGPT())
    assert price() < corrected <= 1.05 * by_score
    assert by_score < by_size
    assert corrected < 1.1 * price()


def test_scores_that_look_beyond_size(price: Callable[..., float]) -> None:
    by_size, by_score = price(Magnitude()), price(Wanda())
    assert price(PrunerZero()) < by_size
    assert price(ACE()) < by_size
    assert price(ACE(score="varp")) <= 1.03 * by_score


def test_two_of_four_weights(price: Callable[..., float]) -> None:
    by_size, by_score = price(Magnitude(pattern="2:4")), price(Wanda(pattern="2:4"))
    assert price(SparseGPT()) < by_score < by_size


@pytest.mark.parametrize("bits", [4, 3])
def test_integers(price: Callable[..., float], bits: int) -> None:
    grid = {"bits": bits, "group_size": 64, "symmetric": False}
    nearest, compensated, scaled = price(RTN(**grid)), price(GPTQ(**grid)), price(AWQ(**grid, ratios=6))
    assert compensated <= 1.02 * scaled
    assert compensated <= nearest
    assert scaled <= (nearest if bits == 4 else 1.02 * nearest)
    assert max(nearest, compensated, scaled) < (1.03 if bits == 4 else 1.15) * price()


def test_zeros_and_integers_together_cost_little_more_than_zeros(price: Callable[..., float]) -> None:
    assert price(SparseGPT(), GPTQ(bits=4, group_size=64)) < 1.02 * price(SparseGPT())
