"""Refitting on a mask: the least-squares optimum, and never worse than the start."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modicum.kernels.cholesky import damped, inverse_cholesky
from modicum.kernels.refit import ROWS, refit


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(rows: int, width: int, seed: int, share: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, a mask, and the Gram matrix of correlated inputs with loud channels."""
    inputs = normal(4 * width, width, seed=seed) @ normal(width, width, seed=seed + 1)
    inputs[:, : width // 8] *= 10
    gram = inputs.T @ inputs
    gram += 0.01 * gram.diagonal().mean() * torch.eye(width)
    pruned = torch.rand(rows, width, generator=torch.Generator().manual_seed(seed)) < share
    return normal(rows, width, seed=seed + 2), pruned, gram


def optimum(weight: Tensor, pruned: Tensor, gram: Tensor) -> Tensor:
    """H_kk^-1 H_k,: w, one row after the other."""
    result = torch.zeros_like(weight)
    for row, mask in enumerate(pruned):
        kept = (~mask).nonzero().flatten()
        result[row, kept] = torch.linalg.solve(gram[kept][:, kept], gram[kept] @ weight[row])
    return result


def errors(weight: Tensor, changed: Tensor, gram: Tensor) -> Tensor:
    change = changed - weight
    return ((change @ gram) * change).sum(1)


def test_it_is_the_constrained_least_squares_solution() -> None:
    weight, pruned, gram = problem(20, 48, 0)
    found = refit(weight, weight, pruned, gram, tolerance=0, steps=400)
    torch.testing.assert_close(found, optimum(weight, pruned, gram), rtol=1e-9, atol=1e-9)


def test_it_is_the_update_of_the_paper() -> None:
    weight, pruned, gram = problem(5, 24, 1, share=0.3)
    inverse = torch.linalg.inv(gram)
    found = refit(weight, weight, pruned, gram, tolerance=0, steps=400)
    for row, mask in enumerate(pruned):
        p = mask.nonzero().flatten()
        change = -weight[row, p] @ torch.linalg.inv(inverse[p][:, p]) @ inverse[p]
        torch.testing.assert_close(found[row], weight[row] + change, rtol=1e-8, atol=1e-8)


def test_one_zero_is_the_step_of_the_optimal_brain_surgeon() -> None:
    weight, _, gram = problem(6, 16, 2)
    pruned = torch.zeros(6, 16, dtype=torch.bool)
    pruned[:, 5] = True
    inverse = torch.linalg.inv(gram)
    expected = weight - weight[:, 5:6] / inverse[5, 5] * inverse[5]
    found = refit(weight, weight, pruned, gram, tolerance=0, steps=200)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_without_correlations_nothing_moves() -> None:
    weight, pruned, _ = problem(9, 20, 3)
    found = refit(weight, weight, pruned, torch.eye(20, dtype=torch.float64), tolerance=0, steps=20)
    assert torch.equal(found, weight.masked_fill(pruned, 0))


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(1, 20),
    width=st.integers(1, 40),
    seed=st.integers(0, 1000),
    share=st.floats(0, 1),
    steps=st.integers(1, 6),
)
def test_no_row_gets_worse(rows: int, width: int, seed: int, share: float, steps: int) -> None:
    weight, pruned, gram = problem(rows, width, seed, share)
    start = weight + normal(rows, width, seed=seed + 5)
    before = errors(weight, start.masked_fill(pruned, 0), gram)
    found = refit(weight, start, pruned, gram, tolerance=0, steps=steps)
    assert not found[pruned].any()
    assert bool(torch.isfinite(found).all())
    assert (errors(weight, found, gram) <= before * (1 + 1e-9) + 1e-9 * gram.diagonal().sum()).all()


def test_rows_do_not_depend_on_each_other() -> None:
    weight, pruned, gram = problem(ROWS + 3, 12, 4)
    whole = refit(weight, weight, pruned, gram, tolerance=0, steps=30)
    alone = refit(weight[-3:], weight[-3:], pruned[-3:], gram, tolerance=0, steps=30)
    torch.testing.assert_close(whole[-3:], alone)


def test_a_looser_tolerance_stops_sooner() -> None:
    weight, pruned, gram = problem(30, 64, 5)
    best = errors(weight, optimum(weight, pruned, gram), gram).sum()
    excess = [
        float(errors(weight, refit(weight, weight, pruned, gram, tolerance=t, steps=300), gram).sum() - best)
        for t in (0.2, 0.01, 0.0)
    ]
    assert excess[0] > excess[1] > excess[2] >= -1e-6 * float(best)
    assert excess[2] == pytest.approx(0, abs=1e-6 * float(best))


def test_in_float32_it_comes_as_close() -> None:
    weight, pruned, gram = problem(30, 64, 6)
    best = errors(weight, optimum(weight, pruned, gram), gram).sum()
    found = refit(weight.float(), weight.float(), pruned, gram.float(), tolerance=0, steps=300)
    assert found.dtype == torch.float32
    assert float(errors(weight, found.double(), gram).sum()) == pytest.approx(float(best), rel=1e-3)


def test_damped_is_what_the_factor_inverts() -> None:
    _, _, gram = problem(1, 24, 7)
    gram[3], gram[:, 3] = 0, 0
    factor, dead, damp = inverse_cholesky(gram.clone().float(), 0.02)
    whole = damped(gram.clone(), dead, damp)
    torch.testing.assert_close(
        whole @ (factor.double().T @ factor.double()), torch.eye(24).double(), atol=2e-3, rtol=0
    )
