from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modicum.errors import InvalidSetting
from modicum.models.next_scale import draw, generators, keep_top_k, keep_top_p, per_map, soft_choice

CPU = torch.device("cpu")


def _logits(seed: int, classes: int = 11) -> torch.Tensor:
    return torch.randn(2, 3, classes, generator=torch.Generator().manual_seed(seed)) * 2


@given(st.integers(0, 1000), st.integers(1, 11))
@settings(deadline=None, max_examples=30)
def test_top_k_keeps_the_k_largest(seed: int, k: int) -> None:
    logits = _logits(seed)
    kept = keep_top_k(logits, k)
    assert (kept.isfinite().sum(-1) == k).all()
    assert torch.equal(kept.topk(k).values, logits.topk(k).values)


def test_top_k_keeps_ties() -> None:
    assert keep_top_k(torch.tensor([1.0, 2.0, 2.0, 0.0]), 1).isfinite().tolist() == [False, True, True, False]


@given(st.integers(0, 1000), st.floats(0.01, 1.0))
@settings(deadline=None, max_examples=30)
def test_top_p_keeps_the_smallest_set_that_covers_p(seed: int, p: float) -> None:
    logits = _logits(seed)
    kept, probabilities = keep_top_p(logits, p).isfinite(), logits.softmax(-1)
    covered = torch.where(kept, probabilities, 0).sum(-1)
    assert (covered >= p - 1e-5).all()
    least = torch.where(kept, probabilities, 2).amin(-1)
    assert ((covered - least < p + 1e-5) | (kept.sum(-1) == 1)).all()
    assert (torch.where(kept, -1, probabilities).amax(-1) <= least).all()


def test_top_p_always_keeps_the_likeliest() -> None:
    assert keep_top_p(torch.tensor([0.0, 0.1, 0.0]), 1e-9).isfinite().tolist() == [False, True, False]


def test_filters_that_are_off() -> None:
    logits = _logits(0)
    assert keep_top_k(logits, 0) is logits
    assert keep_top_p(logits, 0.0) is logits


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([0.5, 0.25, 0.25, 0.0]).log().expand(1, 20_000, 4)
    drawn = draw(logits, generators(3, 1, CPU))
    share = drawn.flatten().bincount(minlength=4) / 20_000
    torch.testing.assert_close(share, torch.tensor([0.5, 0.25, 0.25, 0.0]), atol=0.015, rtol=0)


def test_streams_of_rows_are_independent() -> None:
    logits = _logits(1)
    both = draw(logits, generators([4, 5], 2, CPU))
    assert torch.equal(draw(logits[1:], generators([5], 1, CPU)), both[1:])
    weights = soft_choice(logits, 0.5, generators([4, 5], 2, CPU))
    assert torch.equal(soft_choice(logits[1:], 0.5, generators([5], 1, CPU)), weights[1:])


def test_soft_choice_hardens() -> None:
    logits = keep_top_k(_logits(2), 5)
    early, late = (soft_choice(logits, progress, generators(0, 2, CPU)) for progress in (0.0, 1.0))
    for weights in (early, late):
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3))
        assert (weights[~logits.isfinite()] == 0).all()
    assert late.amax(-1).mean() > early.amax(-1).mean()
    assert soft_choice(logits, 0.3, None).isfinite().all()


def test_number_of_seeds() -> None:
    assert generators(None, 3, CPU) is None
    with pytest.raises(InvalidSetting, match="2 seeds for 3"):
        generators([1, 2], 3, CPU)


def test_a_setting_for_all_maps_or_for_each() -> None:
    assert per_map("cfg", 3, 2) == [3.0, 3.0]
    assert per_map("cfg", [0, 1.5], 2) == [0.0, 1.5]
    with pytest.raises(InvalidSetting, match="2 values of cfg for 3 maps"):
        per_map("cfg", [1, 2], 3)
    with pytest.raises(InvalidSetting, match="cfg is -1"):
        per_map("cfg", -1, 3)
    with pytest.raises(InvalidSetting, match="above 0"):
        per_map("tau", 0.0, 3, above=0)
