"""The least-squares weights of a matrix without some columns."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modicum.kernels.reform import reform


def problem(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, correlated inputs [tokens, columns], and a mask that keeps about half."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(4 * columns, columns, generator=generator) @ torch.randn(
        columns, columns, generator=generator
    )
    kept = torch.rand(columns, generator=generator) < 0.5
    kept[0] = True
    return torch.randn(rows, columns, generator=generator), mixed, kept


def error(weight: Tensor, other: Tensor, inputs: Tensor) -> float:
    return float(((weight - other) @ inputs.t()).square().sum())


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 12), st.integers(2, 40), st.integers(0, 99))
def test_it_beats_plain_slicing(rows: int, columns: int, seed: int) -> None:
    weight, inputs, kept = problem(rows, columns, seed)
    found = reform(weight, inputs.t() @ inputs, kept, damp=1e-6)
    assert not found[:, ~kept].any()
    assert error(found, weight, inputs) <= error(weight * kept, weight, inputs) * (1 + 1e-4) + 1e-3


def test_nothing_changes_if_nothing_goes() -> None:
    weight, inputs, kept = problem(9, 30)
    found = reform(weight, inputs.t() @ inputs, torch.ones_like(kept))
    torch.testing.assert_close(found, weight, rtol=0, atol=1e-5)


def test_it_is_the_solution_of_the_plain_least_squares_problem() -> None:
    weight, inputs, kept = problem(5, 12)
    expected = torch.linalg.lstsq(inputs[:, kept].double(), (inputs @ weight.t()).double()).solution.t()
    found = reform(weight, inputs.t() @ inputs, kept, damp=1e-9)[:, kept]
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


def admm(weight: Tensor, gram: Tensor, kept: Tensor, steps: int, rho: float = 10.0) -> Tensor:
    """The published iteration, whose mask is 1 for what stays."""
    norm = gram.diagonal().sqrt() + 1e-8
    a = gram / torch.outer(norm, norm)
    a = a + 0.1 * a.diagonal().mean() * torch.eye(len(a), dtype=a.dtype)
    dense = (weight * norm).t()
    solve = torch.linalg.inv(a + rho * torch.eye(len(a), dtype=a.dtype))
    w, u = dense.clone(), torch.zeros_like(dense)
    for _ in range(steps):
        z = (w + u) * kept[:, None]
        u = u + w - z
        w = solve @ (a @ dense + rho * (z - u))
    return ((w + u) * kept[:, None]).t() / norm


def test_the_published_iteration_ends_there() -> None:
    weight, inputs, kept = (
        value.double() if value.dtype != torch.bool else value for value in problem(6, 24)
    )
    gram = inputs.t() @ inputs
    found = reform(weight, gram, kept)
    torch.testing.assert_close(admm(weight, gram, kept, 2000).float(), found, rtol=0, atol=1e-4)
    # It has a long way to go: from 20 steps the remaining distance is many times larger.
    far = (admm(weight, gram, kept, 20).float() - found).abs().max()
    assert far > 10 * (admm(weight, gram, kept, 200).float() - found).abs().max()


@pytest.mark.parametrize("dead", [[3], [3, 7]])
def test_inputs_that_never_fire(dead: list[int]) -> None:
    weight, inputs, kept = problem(4, 16)
    inputs[:, dead] = 0
    found = reform(weight, inputs.t() @ inputs, kept)
    assert found.isfinite().all()
