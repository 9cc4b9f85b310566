"""Column sweeps: limiting cases equal the plain methods, counts are exact, and corrections pay."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modicum.errors import InvalidSetting
from modicum.kernels.compensation import (
    DynamicGrid,
    Fixed,
    NotPositiveDefinite,
    Selector,
    SemiStructured,
    StaticGrid,
    Swept,
    Unstructured,
    inverse_cholesky,
    sweep,
)
from modicum.kernels.grids import IntegerScheme, dequantize, fit_grid, group_index, quantize
from modicum.kernels.selection import prune_lowest, prune_lowest_global, semi_structured


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low_rank_gram(width: int, rank: int = 64, seed: int = 0) -> Tensor:
    """Gram matrix of low-rank inputs with noise and 8 loud channels."""
    inputs = normal(8 * width, rank, seed=seed) @ normal(rank, width, seed=seed + 1) / rank**0.5
    inputs += 0.1 * normal(8 * width, width, seed=seed + 2)
    inputs[:, torch.randperm(width, generator=torch.Generator().manual_seed(seed))[:8]] *= 20
    return inputs.T @ inputs / len(inputs)


def output_error(weight: Tensor, changed: Tensor, gram: Tensor) -> float:
    """tr(dW H dW^T) relative to tr(W H W^T)."""
    change = changed - weight
    return float(((change @ gram) * change).sum() / ((weight @ gram) * weight).sum())


def nearest(weight: Tensor, scheme: IntegerScheme) -> Tensor:
    scale, zero_point = fit_grid(weight, scheme, torch.float32)
    return dequantize(quantize(weight, scale, zero_point, scheme), scale, zero_point, scheme, torch.float32)


def restored(swept: Swept, scheme: IntegerScheme) -> Tensor:
    assert swept.codes is not None
    assert swept.scale is not None
    return dequantize(swept.codes, swept.scale, swept.zero_point, scheme, torch.float32)


SELECTORS: list[Selector] = [Unstructured(0.5), SemiStructured(2, 4), SemiStructured(1, 8)]


class TestFactor:
    def test_it_factors_the_inverse_of_the_damped_matrix(self) -> None:
        gram = low_rank_gram(200)
        factor, dead, used = inverse_cholesky(gram.clone(), 0.01)
        assert used == 0.01
        assert not dead.any()
        assert torch.equal(factor, factor.triu())
        damped = gram.double() + 0.01 * gram.diagonal().mean().double() * torch.eye(200)
        expected = torch.linalg.cholesky(damped.inverse(), upper=True)
        torch.testing.assert_close(factor.double(), expected, rtol=1e-3, atol=1e-4)

    def test_dead_inputs_are_reported_and_stand_alone(self) -> None:
        gram = low_rank_gram(64)
        gram[5], gram[:, 5] = 0, 0
        factor, dead, _ = inverse_cholesky(gram.clone(), 0.01)
        assert dead.nonzero().flatten().tolist() == [5]
        assert factor[5, 6:].count_nonzero() == factor[:5, 5].count_nonzero() == 0

    def test_inputs_that_are_all_dead_give_the_identity(self) -> None:
        factor, dead, _ = inverse_cholesky(torch.zeros(9, 9), 0.0)
        assert bool(dead.all())
        assert torch.equal(factor, torch.eye(9))

    def test_the_scale_of_the_gram_matrix_only_scales_the_factor(self) -> None:
        gram = low_rank_gram(64)
        gram[3], gram[:, 3] = 0, 0
        factor, _, _ = inverse_cholesky(gram.clone(), 0.01)
        larger, _, _ = inverse_cholesky(2.0**20 * gram, 0.01)
        torch.testing.assert_close(larger * 2.0**10, factor)

    def test_damping_is_raised_until_the_factor_exists(self) -> None:
        gram = torch.eye(8)
        gram[0, 1] = gram[1, 0] = 1.05  # smallest eigenvalue -0.05
        factor, _, used = inverse_cholesky(gram.clone(), 0.01)
        assert used == 0.08
        assert bool(torch.isfinite(factor).all())

    def test_singular_without_damping_is_damped(self) -> None:
        _, _, used = inverse_cholesky(torch.ones(4, 4), 0.0)
        assert 0 < used <= 0.1

    @pytest.mark.parametrize("value", [-3.0, float("nan"), float("inf")])
    def test_hopeless_matrices_are_refused(self, value: float) -> None:
        gram = torch.eye(6)
        gram[2, 2] = value
        with pytest.raises(NotPositiveDefinite):
            inverse_cholesky(gram.clone(), 0.01)


class TestPruning:
    @pytest.mark.parametrize("selector", SELECTORS)
    def test_uncorrelated_inputs_need_no_correction(self, selector: Selector) -> None:
        weight = normal(24, 320)
        swept = sweep(weight, torch.eye(320), selector=selector)
        if isinstance(selector, SemiStructured):
            expected = semi_structured(weight.abs(), selector.n_kept, selector.m)
        else:
            blocks = weight.split(128, dim=1)
            expected = torch.cat([prune_lowest_global(b.abs(), int(0.5 * b.numel())) for b in blocks], dim=1)
        assert swept.mask is not None
        assert torch.equal(swept.mask, expected)
        assert torch.equal(swept.weight, weight.masked_fill(expected, 0))

    @settings(deadline=None, max_examples=25)
    @given(
        rows=st.integers(1, 9),
        width=st.integers(1, 300),
        sparsity=st.floats(0, 0.99),
        block=st.sampled_from([1, 48, 128, 512]),
    )
    def test_every_block_has_its_exact_count(
        self, rows: int, width: int, sparsity: float, block: int
    ) -> None:
        factor, _, _ = inverse_cholesky(low_rank_gram(width, 8), 0.01)
        swept = sweep(normal(rows, width), factor, selector=Unstructured(sparsity, block))
        assert swept.mask is not None
        for part, values in zip(swept.mask.split(block, 1), swept.weight.split(block, 1), strict=True):
            assert int(part.sum()) == int(sparsity * part.numel())
            assert not values[part].any()

    @pytest.mark.parametrize(("n_kept", "m"), [(2, 4), (1, 4), (4, 8), (3, 5), (16, 32), (40, 80)])
    def test_every_group_keeps_n_of_m(self, n_kept: int, m: int) -> None:
        width = 4 * m
        factor, _, _ = inverse_cholesky(low_rank_gram(width, 8), 0.01)
        swept = sweep(normal(7, width), factor, selector=SemiStructured(n_kept, m))
        assert swept.mask is not None
        assert bool((swept.mask.unflatten(1, (-1, m)).sum(-1) == m - n_kept).all())
        assert not swept.weight[swept.mask].any()

    def test_rows_without_whole_groups_are_refused(self) -> None:
        with pytest.raises(InvalidSetting, match="2:4"):
            sweep(normal(4, 6), torch.eye(6), selector=SemiStructured(2, 4))

    def test_sparsity_zero_changes_nothing(self) -> None:
        weight = normal(8, 200)
        factor, _, _ = inverse_cholesky(low_rank_gram(200), 0.01)
        swept = sweep(weight, factor, selector=Unstructured(0.0))
        assert torch.equal(swept.weight, weight)
        assert swept.loss == 0

    def test_magnitude_loses_more_than_wanda_and_wanda_more_than_sparsegpt(self) -> None:
        for seed in range(3):
            weight = normal(64, 128, seed=seed)
            inputs = normal(4096, 64, seed=seed + 9) @ normal(64, 128, seed=seed + 10) / 8
            inputs += 0.5 * normal(4096, 128, seed=seed + 11)
            inputs *= (0.7 * normal(128, seed=seed + 12)).exp()
            gram = inputs.T @ inputs / len(inputs)
            magnitude = prune_lowest_global(weight.abs(), 64 * 64)
            wanda = prune_lowest(weight.abs() * gram.diagonal().sqrt(), 64)
            factor, _, _ = inverse_cholesky(gram.clone(), 0.01)
            corrected = sweep(weight, factor, selector=Unstructured(0.5)).weight
            errors = [
                output_error(weight, weight.masked_fill(magnitude, 0), gram),
                output_error(weight, weight.masked_fill(wanda, 0), gram),
                output_error(weight, corrected, gram),
            ]
            assert errors[0] > 2 * errors[1] > 2 * 1.2 * errors[2], errors

    def test_a_fixed_mask_is_solved_like_least_squares(self) -> None:
        # one column goes first: the survivors must then be the exact minimiser, which normal equations give
        gram = low_rank_gram(48)
        damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(48)
        weight = normal(5, 48)
        mask = torch.zeros(5, 48, dtype=torch.bool)
        mask[:, 0] = True
        factor, _, _ = inverse_cholesky(gram.clone(), 0.01)
        swept = sweep(weight, factor, selector=Fixed(mask))
        expected = weight[:, 1:] + torch.linalg.solve(damped[1:, 1:], damped[1:, :1] @ weight[:, :1].T).T
        torch.testing.assert_close(swept.weight[:, 1:], expected, rtol=1e-3, atol=1e-3)


class TestRounding:
    @pytest.mark.parametrize("symmetric", [True, False])
    @pytest.mark.parametrize("group_size", [-1, 32, 48, 128, 256])
    def test_uncorrelated_inputs_give_plain_rounding(self, group_size: int, symmetric: bool) -> None:
        scheme = IntegerScheme(3, group_size, symmetric)
        weight = normal(16, 300)
        factor, _, _ = inverse_cholesky(torch.diag(normal(300).square() + 0.1), 0.01)
        swept = sweep(weight, factor, grid=DynamicGrid(scheme))
        scale, zero_point = fit_grid(weight, scheme, torch.float32)
        assert swept.codes is not None
        assert swept.scale is not None
        assert torch.equal(swept.scale, scale)
        assert torch.equal(swept.codes, quantize(weight, scale, zero_point, scheme))
        assert torch.equal(swept.weight, nearest(weight, scheme))

    @pytest.mark.parametrize(
        "scheme", [IntegerScheme(4, 32), IntegerScheme(4, -1), IntegerScheme(3, 96, False)]
    )
    def test_the_block_size_does_not_matter(self, scheme: IntegerScheme) -> None:
        weight = normal(16, 192)
        factor, _, _ = inverse_cholesky(low_rank_gram(192), 0.05)
        results = [sweep(weight, factor, grid=DynamicGrid(scheme), block_size=b) for b in (1, 50, 128, 192)]
        for other in results[1:]:
            assert results[0].codes is not None
            assert other.codes is not None
            # another order of summation may tip a weight that lies between two grid points
            assert float((results[0].codes != other.codes).float().mean()) < 2e-3
            torch.testing.assert_close(results[0].loss, other.loss, rtol=1e-2, atol=0)

    def test_the_block_size_does_not_matter_in_exact_terms(self) -> None:
        # with a fixed mask nothing is rounded to a grid, so nothing can tip
        weight, mask = normal(16, 192), normal(16, 192, seed=1) < 0
        factor, _, _ = inverse_cholesky(low_rank_gram(192), 0.05)
        results = [
            sweep(weight, factor, selector=Fixed(mask), block_size=b).weight for b in (1, 50, 128, 192)
        ]
        for other in results[1:]:
            torch.testing.assert_close(results[0], other, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(("bits", "rtn"), [(4, 0.0099), (3, 0.044), (2, 0.24)])
    def test_corrections_beat_rounding_and_the_order_of_activity_helps(self, bits: int, rtn: float) -> None:
        scheme = IntegerScheme(bits, 128, symmetric=False)
        weight, gram = 0.02 * normal(256, 512), low_rank_gram(512)
        rounded = output_error(weight, nearest(weight, scheme), gram)
        factor, _, _ = inverse_cholesky(gram.clone(), 0.01)
        swept = output_error(weight, sweep(weight, factor, grid=DynamicGrid(scheme)).weight, gram)
        ordered = output_error(weight, by_activity(weight, gram, scheme), gram)
        assert rounded == pytest.approx(rtn, rel=0.15)
        assert ordered < swept < 0.4 * rounded

    def test_a_static_grid_in_the_natural_order_equals_its_codes(self) -> None:
        scheme = IntegerScheme(4, 32, symmetric=False)
        weight = normal(8, 100)
        scale, zero_point = fit_grid(weight, scheme, torch.bfloat16)
        swept = sweep(weight, torch.eye(100), grid=StaticGrid(scheme, scale, zero_point))
        assert swept.codes is not None
        assert torch.equal(swept.codes, quantize(weight, scale, zero_point, scheme))
        assert swept.scale is scale
        assert torch.equal(swept.weight, restored(swept, scheme))

    def test_the_stored_scale_is_the_one_that_was_used(self) -> None:
        scheme = IntegerScheme(4, 32)
        factor, _, _ = inverse_cholesky(low_rank_gram(96), 0.01)
        swept = sweep(normal(8, 96), factor, grid=DynamicGrid(scheme, torch.bfloat16))
        assert swept.scale is not None
        assert swept.scale.dtype == torch.bfloat16
        assert torch.equal(swept.weight, restored(swept, scheme))


def by_activity(weight: Tensor, gram: Tensor, scheme: IntegerScheme) -> Tensor:
    """GPTQ in the order of falling diagonal, with the grids of the original order."""
    order = gram.diagonal().argsort(descending=True)
    scale, zero_point = fit_grid(weight, scheme, torch.float32)
    grid = StaticGrid(scheme, scale, zero_point, group_index(weight.shape[1], scheme)[order])
    factor, _, _ = inverse_cholesky(gram[order][:, order], 0.01)
    return sweep(weight[:, order], factor, grid=grid).weight[:, order.argsort()]


class TestBoth:
    @pytest.mark.parametrize("symmetric", [True, False])
    @pytest.mark.parametrize("selector", [*SELECTORS, Fixed(normal(24, 320, seed=5) < 0.2)])
    def test_masked_weights_are_zero_on_the_grid(self, selector: Selector, symmetric: bool) -> None:
        scheme = IntegerScheme(4, 64, symmetric)
        weight = normal(24, 320) + 0.2
        factor, _, _ = inverse_cholesky(low_rank_gram(320), 0.01)
        swept = sweep(weight, factor, selector=selector, grid=DynamicGrid(scheme))
        assert swept.mask is not None
        dense = restored(swept, scheme)
        assert torch.equal(dense, swept.weight)
        assert not dense[swept.mask].any()
        if isinstance(selector, Fixed):
            assert torch.equal(swept.mask, selector.mask)

    def test_pruned_weights_do_not_stretch_the_grid(self) -> None:
        scheme = IntegerScheme(4, 32)
        weight, mask = normal(8, 64), torch.zeros(8, 64, dtype=torch.bool)
        mask[:, ::9] = True
        swept = sweep(
            weight.masked_fill(mask, 99.0), torch.eye(64), selector=Fixed(mask), grid=DynamicGrid(scheme)
        )
        scale, _ = fit_grid(weight.masked_fill(mask, 0.0), scheme, torch.float32)
        assert swept.scale is not None
        assert torch.equal(swept.scale, scale)

    def test_one_sweep_beats_rounding_after_pruning(self) -> None:
        scheme = IntegerScheme(3, 64)
        weight, gram = normal(64, 256), low_rank_gram(256)
        factor, _, _ = inverse_cholesky(gram.clone(), 0.01)
        together = sweep(weight, factor, selector=Unstructured(0.5), grid=DynamicGrid(scheme)).weight
        pruned = sweep(weight, factor, selector=Unstructured(0.5)).weight
        assert output_error(weight, together, gram) < 0.7 * output_error(
            weight, nearest(pruned, scheme), gram
        )

    @settings(deadline=None, max_examples=25)
    @given(
        width=st.integers(1, 40).map(lambda n: 8 * n),
        selector=st.sampled_from([None, *SELECTORS]),
        group_size=st.sampled_from([-1, 20, 32, 48, 128]),
        symmetric=st.booleans(),
    )
    def test_the_loss_is_half_the_damped_output_error(
        self, width: int, selector: Selector | None, group_size: int, symmetric: bool
    ) -> None:
        gram = low_rank_gram(width, 16)
        weight = normal(6, width)
        factor, _, used = inverse_cholesky(gram.clone(), 0.05)
        grid = DynamicGrid(IntegerScheme(3, group_size, symmetric))
        swept = sweep(weight, factor, selector=selector, grid=grid)
        damped = gram.double() + used * gram.diagonal().mean() * torch.eye(width)
        change = (swept.weight - weight).double()
        exact = float(((change @ damped) * change).sum())
        assert 2 * float(swept.loss) == pytest.approx(exact, rel=1e-3)

    def test_the_input_is_left_alone_and_the_result_is_reproducible(self) -> None:
        weight = normal(8, 64)
        before = weight.clone()
        factor, _, _ = inverse_cholesky(low_rank_gram(64), 0.01)
        results = [
            sweep(weight, factor, selector=Unstructured(0.5), grid=DynamicGrid(IntegerScheme(4, 32)))
            for _ in range(2)
        ]
        assert torch.equal(weight, before)
        assert torch.equal(results[0].weight, results[1].weight)
