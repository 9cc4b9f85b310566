"""Selections: exact counts, the lowest scores, ties to the lower index, whatever the values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modicum.kernels import selection
from modicum.kernels.selection import prune_lowest, prune_lowest_global, semi_structured

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.uint8])


def plateaus(rows: int, k: int, levels: int, seed: int) -> Tensor:
    """Scores with many ties."""
    return torch.randint(0, levels, (rows, k), generator=torch.Generator().manual_seed(seed))


def by_stable_sort(scores: np.ndarray, count: int) -> np.ndarray:
    pruned = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(pruned, np.argsort(scores, axis=1, kind="stable")[:, :count], True, axis=1)
    return pruned


@settings(deadline=None, max_examples=100)
@given(rows=st.integers(1, 6), k=st.integers(1, 40), levels=st.integers(1, 100), dtype=DTYPES, data=st.data())
def test_rows_agree_with_a_stable_sort(
    rows: int, k: int, levels: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    scores = plateaus(rows, k, levels, data.draw(st.integers(0, 999)))
    count = data.draw(st.integers(0, k))
    pruned = prune_lowest(scores.to(dtype), count)
    assert np.array_equal(pruned.numpy(), by_stable_sort(scores.numpy(), count))


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 6), k=st.integers(1, 40), levels=st.integers(1, 100), data=st.data())
def test_the_whole_matrix_agrees_with_a_stable_sort(
    rows: int, k: int, levels: int, data: st.DataObject
) -> None:
    scores = plateaus(rows, k, levels, data.draw(st.integers(0, 999)))
    count = data.draw(st.integers(0, rows * k))
    pruned = prune_lowest_global(scores.float(), count)
    assert int(pruned.sum()) == count
    assert np.array_equal(pruned.view(1, -1).numpy(), by_stable_sort(scores.view(1, -1).numpy(), count))


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 5),
    groups=st.integers(1, 9),
    m=st.sampled_from([1, 2, 4, 5, 8, 16]),
    levels=st.integers(1, 50),
    data=st.data(),
)
def test_every_group_loses_exactly_its_lowest(
    rows: int, groups: int, m: int, levels: int, data: st.DataObject
) -> None:
    scores = plateaus(rows, groups * m, levels, data.draw(st.integers(0, 999)))
    kept = data.draw(st.integers(0, m))
    pruned = semi_structured(scores.float(), kept, m)
    expected = by_stable_sort(scores.view(-1, m).numpy(), m - kept)
    assert np.array_equal(pruned.view(-1, m).numpy(), expected)


def test_both_zeros_and_infinities_are_ordinary_scores() -> None:
    scores = torch.tensor([[0.0, -0.0, float("inf"), -1.0, float("-inf"), 0.0]])
    assert prune_lowest(scores, 3).tolist() == [[True, False, False, True, True, False]]


def test_strided_scores_give_the_mask_of_their_values() -> None:
    scores = plateaus(30, 20, 50, seed=0).float()
    assert torch.equal(prune_lowest(scores.T, 7), prune_lowest(scores.T.contiguous(), 7))
    assert torch.equal(semi_structured(scores.T, 1, 3), semi_structured(scores.T.contiguous(), 1, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [1e-5, 0.1, 0.5, 0.9, 0.99999])
@pytest.mark.parametrize("kind", ["normal", "plateaus", "mostly zero", "sorted", "sample misleads"])
def test_a_large_matrix_agrees_with_a_stable_sort(dtype: torch.dtype, share: float, kind: str) -> None:
    rows, k = 300, 2048  # more than is looked at together
    scores = torch.randn(rows, k, generator=torch.Generator().manual_seed(0)).abs()
    if kind == "plateaus":
        scores = (scores * 2).round()
    elif kind == "mostly zero":
        scores = scores * (scores > 0.6)
    elif kind == "sorted":
        scores = scores.flatten().sort().values.view(rows, k)
    elif kind == "sample misleads":
        scores.view(-1)[:: rows * k // selection.SAMPLE] += 10
    scores = scores.to(dtype)
    count = int(share * rows * k)
    pruned = prune_lowest_global(scores, count)
    expected = by_stable_sort(scores.float().view(1, -1).numpy(), count)
    assert np.array_equal(pruned.view(1, -1).numpy(), expected)
