"""On a trained model, methods of width rank as their papers say: nano-lm, a fifth of its blocks gone, untrained."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import modicum
from modicum import zoo
from modicum.allocate.width import even, lowest_of_each, parameters
from modicum.data.text import load_text
from modicum.data.windows import token_stream, windows
from modicum.evaluate.perplexity import perplexity
from modicum.models import Anatomy
from modicum.models.surgery import Cuttable, cut, cuttable
from modicum.pipeline.loading import load_tokenizer
from modicum.prune.flap import FLAP
from modicum.prune.hywia import HyWIA


def norm(unit: Cuttable) -> Tensor:
    return torch.stack([p.of(p.layer.weight.detach()).square().sum((1, 2)) for p in unit.parts]).sum(0)


def chance(unit: Cuttable) -> Tensor:
    return torch.rand(unit.count, generator=torch.Generator().manual_seed(unit.block))


@pytest.fixture(scope="module")
def price() -> Callable[[Any], float]:
    """`price(how)` is the held-out perplexity of the narrower model; `how` is a method, or scores for every block."""
    directory = zoo.path("nano-lm")
    tokenizer = load_tokenizer(directory)
    dense = modicum.load(directory, dtype=torch.float32)
    data = windows(load_text("stdlib", "train"), tokenizer, 128, 32, 0)
    text = token_stream(load_text("stdlib", "heldout"), tokenizer, 4096)

    @cache
    def measured(how: Any) -> float:
        model = deepcopy(dense)
        if callable(how):
            anatomy = Anatomy.of(model)
            units = cuttable(anatomy)
            middle = [unit for unit in units if 0 < unit.block < 5]
            gone = even(middle, 0.2 * parameters(units))
            cut(anatomy, lowest_of_each({unit: how(unit) for unit in middle}, gone))
        else:
            modicum.compress(model, how, data=data)
        return perplexity(model, text, 512).ppl

    return measured


def test_mixed_importance(price: Callable[[Any], float]) -> None:
    mixed, fine, coarse = (price(HyWIA(alpha=alpha)) for alpha in ("adaptive", (1, 0), (0, 1)))
    assert mixed <= 1.05 * min(fine, coarse)
    assert mixed < price(chance)


def test_constants_instead_of_what_hardly_varies(price: Callable[[Any], float]) -> None:
    assert price(FLAP(samples=32)) < min(price(chance), price(norm))
