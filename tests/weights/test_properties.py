"""Promises: each holds where it should, and each violation is seen and named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modicum.kernels.grids import IntegerScheme
from modicum.weights import DenseWeight, MaskedWeight, PackedWeight
from modicum.weights.properties import IntegerGrid, LayerShapes, NMPattern, Property, TiedWeights, ZeroMask


def normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def dense(weight: Tensor) -> DenseWeight:
    return DenseWeight.from_dense(weight)


def half_zero() -> Tensor:
    weight = normal(8, 32)
    weight[:, ::2] = 0
    return weight


ALL: list[Property] = [ZeroMask(), NMPattern(2, 4), IntegerGrid(4, 32), TiedWeights(), LayerShapes()]


def test_properties_are_values_with_distinct_readable_names() -> None:
    assert NMPattern(2, 4) == NMPattern(2, 4) != NMPattern(4, 8)
    assert len({p.name for p in ALL} | set(ALL)) == 2 * len(ALL)
    assert "2:4" in NMPattern(2, 4).name
    assert "4-bit" in IntegerGrid(4).name


class TestZeroMask:
    def test_more_zeros_are_fine(self) -> None:
        after = half_zero()
        after[0] = 0
        assert ZeroMask().violation(half_zero(), MaskedWeight.from_dense(after)) is None

    def test_rounding_keeps_zeros(self) -> None:
        scheme = IntegerScheme(3, 32, symmetric=False)
        assert ZeroMask().violation(half_zero(), PackedWeight.from_dense(half_zero(), scheme)) is None

    def test_revived_weights_are_counted(self) -> None:
        after = half_zero()
        after[0, :4] = 1
        assert ZeroMask().violation(half_zero(), dense(after)) == "2 pruned weights are no longer zero"

    def test_a_changed_shape_is_named(self) -> None:
        violation = ZeroMask().violation(half_zero(), dense(normal(4, 32)))
        assert violation is not None
        assert "shape" in violation


class TestPattern:
    def test_half_zeros_hold(self) -> None:
        assert NMPattern(2, 4).violation(half_zero(), dense(half_zero())) is None

    def test_full_groups_are_counted(self) -> None:
        after = half_zero()
        after[3, 4:8] = 1
        violation = NMPattern(2, 4).violation(half_zero(), dense(after))
        assert violation is not None
        assert violation.startswith("1 groups of 4")

    def test_a_last_short_group_counts(self) -> None:
        assert NMPattern(2, 4).violation(normal(1, 2), dense(torch.ones(1, 2))) is None
        assert NMPattern(2, 4).violation(normal(1, 7), dense(torch.tensor([[1.0, 1, 0, 0, 1, 1, 1]])))


class TestGrid:
    @pytest.mark.parametrize("symmetric", [True, False])
    @pytest.mark.parametrize("bits", [2, 3, 4, 6])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_expanded_integers_are_on_the_grid(self, bits: int, symmetric: bool, dtype: torch.dtype) -> None:
        weight = (normal(16, 72) + 0.3).to(dtype)
        packed = PackedWeight.from_dense(weight, IntegerScheme(bits, 32, symmetric))
        grid = IntegerGrid(bits, 32)
        assert grid.violation(weight, packed) is None
        assert grid.violation(weight, dense(packed.to_dense())) is None
        assert grid.violation(weight, MaskedWeight.from_dense(packed.to_dense(), normal(16, 72) > 0)) is None

    @pytest.mark.parametrize("bits", [2, 3, 4])
    def test_four_bits_in_bfloat16_are_recognised(self, bits: int) -> None:
        packed = PackedWeight.from_dense(normal(16, 64).bfloat16(), IntegerScheme(bits, 32))
        assert IntegerGrid(bits, 32).violation(normal(16, 64), dense(packed.to_dense())) is None

    def test_gaussian_weights_are_not_on_a_grid(self) -> None:
        violation = IntegerGrid(4, 32).violation(normal(4, 64), dense(normal(4, 64)))
        assert violation == "8 groups of weights are not on a 4-bit grid"

    def test_one_corrected_weight_is_noticed(self) -> None:
        after = PackedWeight.from_dense(normal(4, 64), IntegerScheme(4, 32)).to_dense()
        after[2, 40] += 0.01
        violation = IntegerGrid(4, 32).violation(normal(4, 64), dense(after))
        assert violation is not None
        assert violation.startswith("1 groups")

    @pytest.mark.parametrize("scheme", [IntegerScheme(8, 32), IntegerScheme(4, 64)])
    def test_another_grid_is_a_violation(self, scheme: IntegerScheme) -> None:
        assert IntegerGrid(4, 32).violation(normal(4, 64), PackedWeight.from_dense(normal(4, 64), scheme))

    def test_more_levels_than_bits_are_a_violation(self) -> None:
        assert IntegerGrid(2, -1).violation(normal(1, 5), dense(torch.tensor([[0.0, 1, 2, 3, 4]])))
        assert IntegerGrid(2, -1).violation(normal(1, 4), dense(torch.tensor([[0.0, 1, 2, 3]]))) is None


def test_shapes() -> None:
    assert LayerShapes().violation(normal(4, 8), dense(normal(4, 8))) is None
    assert LayerShapes().violation(normal(4, 8), dense(normal(4, 6))) == (
        "the shape changed from [4, 8] to [4, 6]"
    )


def test_ties_are_no_matter_of_one_layer() -> None:
    assert TiedWeights().violation(normal(4, 8), dense(normal(2, 2))) is None
