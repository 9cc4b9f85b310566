"""A 5-gram model with interpolated, modified Kneser-Ney smoothing: the bar that a language model has to
clear.

A loss of 2.4 nats per token says little by itself. The same text under a model that only counts says what
there was to gain: a neural model that does not beat it has learnt nothing that a table could not hold.

    p_k(w | h) = (c_k(h w) - D_k(c_k(h w))) / c_k(h)  +  gamma_k(h) p_{k-1}(w | h')

with h' the history h without its oldest token, c_5 the counts of the text and, for the lower orders, the
number of different tokens that precede: a word that follows everything deserves more than one that is
frequent after one history. Three discounts D per order, for counts of one, two, and more. gamma gives away
what the discounts took. Chen and Goodman, An Empirical Study of Smoothing Techniques for Language Modeling,
1998.

All of it is sorted integer codes: an n-gram is one number in base V, its history that number divided by V.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modicum.errors import InvalidSetting, UnusableData

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Order:
    """Tables of one order: `[types]` for its n-grams, `[histories]` for what they follow."""

    codes: Ints
    kept: Floats  # discounted count over the count of the history
    histories: Ints
    given: Floats  # gamma: the weight of the next lower order

    @classmethod
    def of(cls, codes: Ints, counts: Ints, vocab: int) -> _Order:
        discount = _discounts(counts)[np.minimum(counts, 3)]  # [types]
        histories, first, which = np.unique(codes // vocab, return_index=True, return_inverse=True)
        totals = np.add.reduceat(counts, first)  # [histories]
        given = np.add.reduceat(discount, first) / totals
        return cls(codes, (counts - discount) / totals[which], histories, given)

    def probability(self, codes: Ints, vocab: int, lower: Floats) -> Floats:
        """Probabilities `[m]` of n-grams, given those of the order below, which unseen histories pass on."""
        kept = _look_up(self.codes, self.kept, codes, missing=0.0)
        given = _look_up(self.histories, self.given, codes // vocab, missing=1.0)
        return kept + given * lower


class KneserNey:
    """Counts of a token stream, and the probabilities that follow from them.

    Args:
        stream: token ids `[n]`, integers in [0, vocab).
        vocab: size V of the vocabulary; V^order must fit into 63 bits.
        order: length of the longest n-gram.
    """

    def __init__(self, stream: NDArray[np.integer], vocab: int, order: int = 5) -> None:
        if vocab**order >= 2**63:
            raise InvalidSetting(f"{order}-grams over {vocab} tokens do not fit 63 bits.", "Lower the order.")
        if stream.size < order:
            raise UnusableData(f"The text has {stream.size} tokens.", f"Give at least {order}.")
        self.vocab, self.order = vocab, order
        codes, counts = np.unique(self._codes(stream, order), return_counts=True)
        orders = [_Order.of(codes, counts, vocab)]
        for length in range(order - 1, 0, -1):
            codes, counts = np.unique(
                codes % vocab**length, return_counts=True
            )  # different tokens that precede
            orders.append(_Order.of(codes, counts, vocab))
        self._orders = orders[::-1]  # unigrams first

    def probabilities(self, grams: NDArray[np.integer]) -> Floats:
        """p(last token | the tokens before it).

        Args:
            grams: `[m, order]`.

        Returns:
            `[m]`.
        """
        probability = np.full(len(grams), 1 / self.vocab)
        for length, order in enumerate(self._orders, start=1):
            codes = np.zeros(len(grams), dtype=np.int64)
            for column in grams.T[-length:]:
                codes = codes * self.vocab + column
            probability = order.probability(codes, self.vocab, probability)
        return probability

    def loss(self, stream: NDArray[np.integer]) -> float:
        """Mean negative log-likelihood in nats per token; the first order - 1 tokens are only history."""
        grams = np.lib.stride_tricks.sliding_window_view(stream, self.order)  # [n - order + 1, order]
        return float(-np.log(self.probabilities(grams)).mean())

    def _codes(self, stream: NDArray[np.integer], length: int) -> Ints:
        codes = np.zeros(stream.size - length + 1, dtype=np.int64)
        for offset in range(length):
            codes = codes * self.vocab + stream[offset : offset + codes.size]
        return codes


def _discounts(counts: Ints) -> Floats:
    """Discounts `[4]` for counts of 0, 1, 2, and 3 or more, from how many n-grams occur one to four times."""
    n1, n2, n3, n4 = (
        np.bincount(np.minimum(counts, 5), minlength=6)[1:5] + 0.5
    ).tolist()  # + 0.5: tiny texts have zeros
    y = n1 / (n1 + 2 * n2)
    raw = [0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    return np.clip(raw, [0.0, 0.05, 0.1, 0.1], [0.0, 0.95, 1.9, 2.9])


def _look_up(keys: Ints, values: Floats, wanted: Ints, missing: float) -> Floats:
    at = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
    return np.where(keys[at] == wanted, values[at], missing)
