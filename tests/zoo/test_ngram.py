from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modicum.errors import InvalidSetting, UnusableData
from modicum.zoo.ngram import KneserNey


def distribution(model: KneserNey, history: list[int]) -> np.ndarray:
    grams = np.tile(np.array([*history, 0]), (model.vocab, 1))
    grams[:, -1] = np.arange(model.vocab)
    return model.probabilities(grams)


@given(
    stream=st.lists(st.integers(0, 6), min_size=5, max_size=200),
    history=st.lists(st.integers(0, 6), min_size=4, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_probabilities_sum_to_one(stream: list[int], history: list[int]) -> None:
    probabilities = distribution(KneserNey(np.array(stream), vocab=7), history)
    assert (probabilities > 0).all()
    assert math.isclose(probabilities.sum(), 1, rel_tol=1e-9)


def test_seen_histories_sum_to_one_at_every_order() -> None:
    stream = np.random.default_rng(0).integers(0, 5, 400)
    for order in (1, 2, 3, 4):
        model = KneserNey(stream, vocab=5, order=order)
        assert math.isclose(distribution(model, stream[10 : 10 + order - 1].tolist()).sum(), 1, rel_tol=1e-9)


def test_bigram_by_hand() -> None:
    """One order above the unigrams, worked out from the formula with plain loops."""
    stream, vocab = [0, 1, 2, 0, 1, 3, 0, 1, 2, 0, 2, 0, 1, 0, 1, 2], 4
    pairs = list(pairwise(stream))
    types = sorted(set(pairs))

    def discounts(counts: list[int]) -> list[float]:
        n = [counts.count(k) + 0.5 for k in range(5)]
        y = n[1] / (n[1] + 2 * n[2])
        raw = [1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
        low, high = (0.05, 0.1, 0.1), (0.95, 1.9, 2.9)
        return [0.0, *(min(max(r, a), b) for r, a, b in zip(raw, low, high, strict=True))]

    before = {w: sum(pair[1] == w for pair in types) for w in range(vocab)}  # different tokens that precede w
    d1 = discounts([count for count in before.values() if count])
    d2 = discounts([pairs.count(pair) for pair in types])

    def unigram(w: int) -> float:
        given_away = sum(d1[min(count, 3)] for count in before.values())
        return (before[w] - d1[min(before[w], 3)] + given_away / vocab) / len(types)

    def bigram(h: int, w: int) -> float:
        follow = [pairs.count((h, v)) for v in range(vocab)]
        given_away = sum(d2[min(count, 3)] for count in follow)
        return (follow[w] - d2[min(follow[w], 3)] + given_away * unigram(w)) / sum(follow)

    model = KneserNey(np.array(stream), vocab, order=2)
    for h in range(3):
        expected = [bigram(h, w) for w in range(vocab)]
        assert distribution(model, [h]) == pytest.approx(expected, rel=1e-12)


def test_order_pays_on_a_text_with_memory() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(0, 20, (10, 6))
    stream = words[rng.integers(0, 10, 800)].ravel()
    train, heldout = stream[:4000], stream[4000:]
    losses = [KneserNey(train, 20, order).loss(heldout) for order in (1, 2, 3)]
    assert losses[0] > losses[1] + 0.5 > losses[2] + 0.5


def test_random_text_costs_the_logarithm_of_the_vocabulary() -> None:
    stream = np.random.default_rng(0).integers(0, 16, 20000)
    loss = KneserNey(stream[:10000], 16, order=3).loss(stream[10000:])
    assert math.log(16) < loss < math.log(16) + 0.1


def test_loss_does_not_overflow_small_integers() -> None:
    stream = np.random.default_rng(0).integers(0, 2000, 500)
    assert KneserNey(stream.astype(np.int16), 2048).loss(stream.astype(np.int16)) == pytest.approx(
        KneserNey(stream, 2048).loss(stream)
    )


def test_codes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidSetting, match="63 bits"):
        KneserNey(np.arange(10), vocab=50000, order=5)


def test_too_little_text_is_refused() -> None:
    with pytest.raises(UnusableData, match="3 tokens"):
        KneserNey(np.arange(3), vocab=10)
