"""Questions about whole matrices: the answers of the plain formulas, without their copies."""

from __future__ import annotations

import pytest
import torch

from modicum.kernels import chunks
from modicum.kernels.checks import all_finite, relative_error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_value_is_found_among_large_ones(dtype: torch.dtype, bad: float) -> None:
    values = torch.full((40, 30), torch.finfo(dtype).max, dtype=dtype)
    values[::2] *= -1
    assert all_finite(values)
    values[17, 5] = bad
    assert not all_finite(values)


def test_nothing_is_finite() -> None:
    assert all_finite(torch.empty(0, 3))


@pytest.mark.parametrize("scaled", [False, True])
def test_the_error_is_that_of_the_formula(scaled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1000)
    random = torch.Generator().manual_seed(0)
    reference = torch.randn(33, 20, generator=random).to(torch.bfloat16)
    changed = (reference.float() + 0.1 * torch.randn(33, 20, generator=random)).to(torch.bfloat16)
    before = reference.clone(), changed.clone()
    scale = torch.rand(20, generator=random) if scaled else None
    factor = 1 if scale is None else scale.double()
    error = (changed.double() - reference.double()) * factor
    expected = float(error.norm() / (reference.double() * factor).norm())
    assert relative_error(changed, reference, scale) == pytest.approx(expected, rel=1e-6)
    assert torch.equal(reference, before[0])
    assert torch.equal(changed, before[1])


def test_equal_matrices_have_no_error_also_if_they_are_zero() -> None:
    zeros = torch.zeros(4, 4)
    assert relative_error(zeros, zeros) == 0
