"""Running sums over a layer's inputs: they equal the sums over all inputs at once, in any order of batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modicum.calibrate.statistics import KINDS, MATRICES, SAMPLE, TILE, Statistics, statistics_bytes


def inputs_of(tokens: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))


def sums(*batches: Tensor, wanted: frozenset[str] = KINDS) -> Statistics:
    found = Statistics(wanted)
    for batch in batches:
        found.update(batch)
    return found


@settings(deadline=None, max_examples=25)
@given(
    parts=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    width=st.sampled_from([1, 5, TILE - 1, TILE, TILE + 1, 2 * TILE + 3]),
    seed=st.integers(0, 999),
)
def test_batches_add_up(parts: list[int], width: int, seed: int) -> None:
    x = inputs_of(sum(parts), width, seed)
    found = sums(*x.split(parts))
    assert found.tokens == len(x)
    torch.testing.assert_close(found.gram, x.T @ x, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.gram, found.gram.T, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.column_norm, x.norm(dim=0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.mean_abs, x.abs().mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.column_var, x.var(0, correction=0), rtol=1e-4, atol=1e-5)
    assert torch.equal(found.sample, x[:SAMPLE])


@pytest.mark.parametrize("shape", [(12, 8), (3, 4, 8), (2, 3, 2, 8)])
def test_leading_dimensions_are_tokens(shape: tuple[int, ...]) -> None:
    x = torch.randn(*shape)
    assert sums(x).tokens == 12
    torch.testing.assert_close(sums(x).gram, x.flatten(0, -2).T @ x.flatten(0, -2))


def test_the_norm_is_the_same_with_and_without_the_gram_matrix() -> None:
    x = inputs_of(64, 40)
    alone, beside = sums(x, wanted=frozenset({"column_norm"})), sums(x, wanted=frozenset({"gram"}))
    torch.testing.assert_close(alone.column_norm, beside.column_norm)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_are_taken_in_float32(dtype: torch.dtype) -> None:
    x = (300 * inputs_of(2000, 16)).to(dtype)  # squares leave the range of float16, sums the one of bfloat16
    found = sums(x)
    exact = x.double()
    assert bool(torch.isfinite(found.gram).all())
    torch.testing.assert_close(found.gram.double(), exact.T @ exact, rtol=1e-4, atol=1e3)
    torch.testing.assert_close(found.mean_abs.double(), exact.abs().mean(0), rtol=1e-4, atol=0)


@settings(deadline=None, max_examples=25)
@given(width=st.integers(1, 150), seed=st.integers(0, 999))
def test_dividing_the_inputs_divides_the_sums(width: int, seed: int) -> None:
    x, scale = inputs_of(80, width, seed), inputs_of(1, width, seed + 1)[0].abs() + 0.1
    moved, fresh = sums(x), sums(x / scale)
    moved.divide_inputs(scale)
    for kind in KINDS:
        torch.testing.assert_close(getattr(moved, kind), getattr(fresh, kind), rtol=1e-4, atol=1e-3)
    only_norm = sums(x, wanted=frozenset({"column_norm"}))
    only_norm.divide_inputs(scale)
    torch.testing.assert_close(only_norm.column_norm, fresh.column_norm, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("offset", [0.0, 100.0, -3000.0])
def test_the_variance_is_that_of_tokens_whatever_their_mean(offset: float) -> None:
    x = inputs_of(5000, 6)
    found = sums(*(x + offset).split(700), wanted=frozenset({"column_var"}))
    torch.testing.assert_close(found.column_var, x.var(0, correction=0), rtol=1e-3, atol=0)


def test_the_inputs_are_not_kept_or_changed() -> None:
    x = inputs_of(20, 8)
    before = x.clone()
    found = sums(x)
    found.divide_inputs(torch.full((8,), 2.0))
    found.update(x)
    assert torch.equal(x, before)
    x.zero_()
    assert bool(found.sample.count_nonzero())


@pytest.mark.parametrize("kind", sorted(KINDS | MATRICES))
def test_what_was_not_asked_for_is_missing(kind: str) -> None:
    other = "gram" if kind in ("mean_abs", "sample") else "mean_abs"
    with pytest.raises(LookupError, match=f"'{kind}' was not asked for"):
        getattr(sums(inputs_of(4, 4), wanted=frozenset({other})), kind)


@pytest.mark.parametrize("width", [1, 100, SAMPLE, SAMPLE + 1, 3 * SAMPLE])
def test_white_noise_prefers_no_input(width: int) -> None:
    noise = Statistics.of_white_noise(KINDS, width, torch.device("cpu"))
    assert noise.tokens == 0
    assert torch.equal(noise.gram, torch.eye(width))
    assert torch.equal(noise.column_norm, torch.ones(width))
    assert torch.equal(noise.mean_abs, torch.ones(width))
    assert torch.equal(noise.column_var, torch.ones(width))
    near = noise.sample[:, :SAMPLE]
    assert torch.equal(near.T @ near, torch.eye(min(width, SAMPLE)))
    assert noise.sample.shape[1] == width


@pytest.mark.parametrize(
    "wanted", [{"gram"}, {"column_norm"}, {"gram", "column_norm", "sample"}, {"column_var"}, KINDS]
)
def test_announced_bytes_are_those_of_the_sums(wanted: set[str]) -> None:
    found = sums(inputs_of(SAMPLE + 5, 40), wanted=frozenset(wanted))
    held = [v for v in vars(found).values() if isinstance(v, Tensor)]
    assert statistics_bytes(found.wanted, 40) == sum(tensor.nbytes for tensor in held)
