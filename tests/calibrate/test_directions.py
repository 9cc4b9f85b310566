"""Directions of outputs: sums over tokens, in any pieces, and what they say of removed weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from modicum.calibrate.directions import Directions
from modicum.calibrate.statistics import DIRECTIONS


def layer(tokens: int, rows: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, width, generator=generator), torch.randn(rows, width, generator=generator)


def measured(weight: Tensor, *batches: Tensor) -> dict[str, Tensor]:
    sums = Directions(DIRECTIONS)
    for batch in batches:
        sums.update(batch, weight)
    return sums.matrices()


@settings(deadline=None, max_examples=12)
@given(
    st.lists(st.integers(1, 1200), min_size=1, max_size=3),
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(0, 99),
)
def test_sums_equal_the_formulas_in_any_pieces(parts: list[int], rows: int, width: int, seed: int) -> None:
    x, weight = layer(sum(parts), rows, width, seed)
    found = measured(weight, *x.split(parts))
    x, a = x.double(), (x @ weight.T).double()
    square = a.square().sum(1, keepdim=True)
    alignment = (a.abs() / square).T @ x.abs()
    turning = ((1 - a.square() / square) / square).T @ x.square()
    torch.testing.assert_close(found["alignment"].double(), alignment, rtol=1e-4, atol=1e-4)
    rounding = 1e-6 * float((x.square() / square).sum(0).max())
    torch.testing.assert_close(found["turning"].double().square(), turning, rtol=1e-4, atol=rounding)


def test_a_removed_weight_turns_the_output_as_far_as_is_said() -> None:
    x, weight = layer(50, 6, 8, seed=3)
    weight *= torch.rand(6, 8, generator=torch.Generator().manual_seed(4))
    predicted = (weight * measured(weight, x)["turning"]).square() / 2
    before, lost = x @ weight.T, torch.empty(6, 8)
    for i in range(6):
        for j in range(8):
            removed = weight.clone()
            removed[i, j] = 0
            lost[i, j] = (1 - F.cosine_similarity(before, x @ removed.T, dim=1)).sum()
    ranks = torch.stack([predicted.flatten(), lost.flatten()]).argsort(1).argsort(1).double()
    assert torch.corrcoef(ranks)[0, 1] > 0.95
    small = weight.abs() < 0.1
    torch.testing.assert_close(predicted[small], lost[small], rtol=0.35, atol=1e-4)


def test_a_single_output_cannot_turn() -> None:
    x, weight = layer(40, 1, 8)
    found = measured(weight, x)
    assert float(found["turning"].max()) < 1e-2 * float(found["alignment"].min())


def test_tokens_without_an_output_are_left_out() -> None:
    x, weight = layer(30, 4, 5)
    weight[:, 0] = 0
    silent = torch.zeros(3, 5)
    silent[:, 0] = 100
    for kind, value in measured(weight, torch.cat([x, silent])).items():
        torch.testing.assert_close(value, measured(weight, x)[kind])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_taken_in_float32(dtype: torch.dtype) -> None:
    x, weight = layer(3000, 4, 5)
    x, weight = (300 * x).to(dtype), (300 * weight).to(dtype)  # outputs leave the range of float16
    for kind, value in measured(weight, x).items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, measured(weight.float(), x.float())[kind])


def test_nothing_is_known_before_the_first_token() -> None:
    assert Directions(DIRECTIONS).matrices() == {}
