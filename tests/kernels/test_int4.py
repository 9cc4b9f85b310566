"""The 4-bit kernel of PyTorch against an expanded matrix."""

from __future__ import annotations

import pytest
import torch

from modicum.kernels import int4
from modicum.kernels.grids import IntegerScheme, dequantize, fit_grid, quantize

needs_kernel = pytest.mark.skipif(
    not int4.suits(16, 32, IntegerScheme(4, 32)), reason="this processor has no 4-bit kernel"
)


@needs_kernel
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 64, 128, 256, -1])
@pytest.mark.parametrize("tokens", [(1,), (2, 3), (64,)])
def test_the_product_equals_that_of_the_expanded_matrix(
    tokens: tuple[int, ...], group_size: int, symmetric: bool
) -> None:
    scheme = IntegerScheme(4, group_size, symmetric)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 256, generator=generator).bfloat16() + 0.5
    x = torch.randn(*tokens, 256, generator=generator).bfloat16()
    scale, zero_point = fit_grid(weight, scheme, torch.bfloat16)
    codes = quantize(weight, scale, zero_point, scheme)
    assert int4.suits(48, 256, scheme)
    product = int4.matmul(x, *int4.repack(codes, scale, zero_point)).float()
    expected = x.float() @ dequantize(codes, scale, zero_point, scheme, torch.bfloat16).float().T
    assert product.shape == (*tokens, 48)
    assert float((product - expected).norm() / expected.norm()) < 6e-3


@pytest.mark.parametrize(
    ("shape", "scheme"),
    [
        ((16, 32), IntegerScheme(3, 32)),
        ((17, 32), IntegerScheme(4, 32)),
        ((16, 48), IntegerScheme(4, 32)),
        ((16, 48), IntegerScheme(4, -1)),
        ((16, 32), IntegerScheme(4, 16)),
    ],
)
def test_other_shapes_and_grids_are_left_to_the_dense_product(
    shape: tuple[int, int], scheme: IntegerScheme
) -> None:
    assert not int4.suits(*shape, scheme)


def test_only_a_few_bfloat16_tokens_without_gradient_are_taken() -> None:
    scale = torch.ones(16, 1, dtype=torch.bfloat16)
    x = torch.ones(2, 32, 32, dtype=torch.bfloat16)
    assert int4.is_usable(x, scale)
    assert not int4.is_usable(torch.ones(65, 32, dtype=torch.bfloat16), scale)
    assert not int4.is_usable(x[:0], scale)
    assert not int4.is_usable(x.float(), scale)
    assert not int4.is_usable(x, scale.float())
    assert not int4.is_usable(x.clone().requires_grad_(), scale)
