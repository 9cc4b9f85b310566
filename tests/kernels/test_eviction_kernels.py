from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modicum.kernels import eviction
from modicum.kernels.eviction import attention_mass, average_pool, dots, keep_highest

SHAPES = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 12))


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, levels=st.integers(1, 5), count=st.integers(1, 12), seed=st.integers(0, 99))
def test_the_highest_stay_and_the_lower_position_wins_a_tie(
    shape: tuple[int, int, int], levels: int, count: int, seed: int
) -> None:
    count = min(count, shape[2])
    scores = torch.randint(levels, shape, generator=torch.Generator().manual_seed(seed)).float()
    scores[scores == levels - 1] = torch.inf
    scores[scores == 0] = -torch.inf
    got = keep_highest(scores, count)
    assert got.dtype == torch.int64
    for row in range(shape[0]):
        for head in range(shape[1]):
            plain = scores[row, head].tolist()
            ranked = sorted(range(shape[2]), key=lambda position: (-plain[position], position))
            assert got[row, head].tolist() == sorted(ranked[:count])


@settings(max_examples=30, deadline=None)
@given(shape=SHAPES, queries=st.integers(1, 9), low=st.booleans(), seed=st.integers(0, 99))
def test_products_are_those_of_the_stored_numbers(
    shape: tuple[int, int, int], queries: int, low: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(*shape, 8, generator=generator).to(torch.bfloat16 if low else torch.float32)
    q = torch.randn(*shape[:2], queries, 8, generator=generator)
    got = dots(q, keys)
    assert got.dtype == torch.float32
    want = torch.einsum("rhqd,rhsd->rhqs", q.double(), keys.double())
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-5)


def test_autocast_does_not_round_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 2, 3, 8, generator=generator), torch.randn(1, 2, 9, 8, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (q @ k.mT).dtype == torch.bfloat16
        products, mass = dots(q, k), attention_mass(q, k, 0.5)
    assert torch.equal(products, dots(q, k))
    assert torch.equal(mass, attention_mass(q, k, 0.5))


@pytest.mark.parametrize("together", [1, 2, 5, 100])
def test_attention_mass_does_not_depend_on_how_many_queries_are_looked_at_together(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 3, 11, 8, generator=generator), torch.randn(2, 3, 17, 8, generator=generator)
    monkeypatch.setattr(eviction, "LOGIT_BYTES", together * 4 * 2 * 3 * 17)
    got = attention_mass(q, k, 0.7)
    weights = (q.double() @ k.double().mT * 0.7).softmax(-1)
    torch.testing.assert_close(got.double(), weights.sum(2), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(got.sum(-1), torch.full((2, 3), 11.0))


@pytest.mark.parametrize("kernel", [1, 3, 5, 9])
def test_neighbours_beyond_the_ends_count_as_zero(kernel: int) -> None:
    scores = torch.rand(1, 2, 6, generator=torch.Generator().manual_seed(0))
    got, reach = average_pool(scores, kernel), kernel // 2
    for position in range(6):
        near = scores[..., max(0, position - reach) : position + reach + 1]
        torch.testing.assert_close(got[..., position], near.sum(-1) / kernel)
