"""Sparse tensor cores: which kernel is believed, what it is given, and the way back to the dense matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass

from modicum.kernels import sparse24
from modicum.kernels.selection import semi_structured
from modicum.kernels.sparse24 import CUSPARSELT, CUTLASS, Kernel

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def two_of_four(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    return weight.masked_fill(semi_structured(weight.abs(), 2, 4), 0).to(dtype)


def multiply_here(x: Tensor, packed: sparse24.Packed, out_features: int) -> Tensor:
    """What CUTLASS does, on a processor; as strict as the GPU about tokens."""
    assert len(x) % sparse24.TOKENS == 0
    assert x.is_contiguous()
    return (x.float() @ sparse_semi_structured_to_dense_cutlass(*packed).float().T).to(x.dtype)


HERE = replace(CUTLASS, name="processor", multiply=multiply_here)
"""CUTLASS' order of the weights with a product that a processor can do."""


@pytest.mark.parametrize(
    ("kernel", "tensor"),
    [(CUSPARSELT, SparseSemiStructuredTensorCUSPARSELT), (CUTLASS, SparseSemiStructuredTensorCUTLASS)],
)
def test_shapes_and_dtypes_are_those_that_pytorch_takes(kernel: Kernel, tensor: Any) -> None:
    for dtype in sparse24.DTYPES:
        limits = tensor._DTYPE_SHAPE_CONSTRAINTS[dtype]
        assert (kernel.rows, kernel.columns) == (limits.sparse_min_rows, limits.sparse_min_cols)
        assert sparse24.TOKENS % limits.dense_min_rows == sparse24.TOKENS % limits.dense_min_cols == 0


def test_what_does_not_fit_is_refused_with_its_reason() -> None:
    assert CUTLASS.refuses(32, 128, torch.float16) == CUSPARSELT.refuses(16, 48, torch.bfloat16) == ""
    assert "float32" in CUTLASS.refuses(32, 128, torch.float32)
    assert "[48, 64] is not a multiple of [32, 64]" in CUTLASS.refuses(48, 64, torch.float16)
    assert "[32, 96]" in CUTLASS.refuses(32, 96, torch.float16)


@pytest.mark.parametrize("dtype", sparse24.DTYPES)
def test_the_order_of_cutlass_holds_the_matrix_in_nine_sixteenths(dtype: torch.dtype) -> None:
    dense = two_of_four(96, 128, dtype)
    packed = CUTLASS.pack(dense)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(*packed), dense)
    assert sum(part.nbytes for part in packed) == dense.nbytes * 9 // 16


@settings(max_examples=20, deadline=None)
@given(leading=st.lists(st.integers(1, 5), max_size=3))
def test_any_number_of_tokens_is_multiplied(leading: list[int]) -> None:
    dense = two_of_four(32, 64)
    x = torch.randn(*leading, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    product = sparse24.matmul(x, HERE.pack(dense), HERE, 32)
    assert product.shape == (*leading, 32)
    torch.testing.assert_close(product.float(), x.float() @ dense.float().T, rtol=1e-2, atol=1e-2)


def test_strided_activations_are_laid_out_first() -> None:
    dense, x = two_of_four(32, 64), torch.randn(64, 16).bfloat16().t()
    product = sparse24.matmul(x, HERE.pack(dense), HERE, 32)
    assert torch.equal(product, sparse24.matmul(x.contiguous(), HERE.pack(dense), HERE, 32))


@pytest.mark.parametrize("dtype", sparse24.DTYPES)
def test_the_identity_brings_the_matrix_back(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(sparse24, "_EXPANDED", 48)  # 128 columns in parts of 48, 48 and 32
    dense = two_of_four(32, 128, dtype)
    assert torch.equal(sparse24.expand(HERE.pack(dense), HERE, (32, 128), dtype), dense)


def raises(x: Tensor, packed: sparse24.Packed, out_features: int) -> Tensor:
    raise RuntimeError("architecture mismatch")


def forgets_positions(x: Tensor, packed: sparse24.Packed, out_features: int) -> Tensor:
    return multiply_here(x, (packed[0], torch.zeros_like(packed[1])), out_features)


@pytest.mark.parametrize(
    ("multiply", "believed"), [(multiply_here, True), (raises, False), (forgets_positions, False)]
)
def test_a_kernel_is_believed_when_it_multiplies_right(
    multiply: Callable[..., Tensor], believed: bool
) -> None:
    assert sparse24._is_right(replace(HERE, multiply=multiply), CPU) is believed


@pytest.mark.parametrize(
    ("capability", "has_library", "right", "chosen"),
    [
        ((7, 5), True, {"cuSPARSELt", "CUTLASS"}, None),
        ((9, 0), True, {"cuSPARSELt"}, CUSPARSELT),
        ((9, 0), False, {"cuSPARSELt"}, None),
        ((8, 0), True, {"cuSPARSELt", "CUTLASS"}, CUSPARSELT),
        ((8, 6), False, {"cuSPARSELt", "CUTLASS"}, CUTLASS),
        ((8, 6), True, {"CUTLASS"}, CUTLASS),
    ],
)
def test_the_first_kernel_that_works_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    has_library: bool,
    right: set[str],
    chosen: Kernel | None,
) -> None:
    kernels = (replace(CUSPARSELT, available=lambda: has_library), replace(CUTLASS, available=lambda: True))
    monkeypatch.setattr(sparse24, "KERNELS", kernels)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(sparse24, "_is_right", lambda kernel, device: kernel.name in right)
    found = sparse24.kernel_for.__wrapped__(torch.device("cuda"))
    assert (found and found.name) == (chosen and chosen.name)


def test_a_processor_has_no_kernel() -> None:
    assert sparse24.kernel_for(CPU) is None


@needs_gpu
@pytest.mark.parametrize("dtype", sparse24.DTYPES)
@pytest.mark.parametrize("tokens", [1, 7, 64, 1000])
def test_the_gpu_gives_the_dense_product(tokens: int, dtype: torch.dtype) -> None:
    device = torch.device("cuda")
    kernel = sparse24.kernel_for(device)
    if kernel is None:
        pytest.skip("this GPU has no sparse kernel")
    dense = two_of_four(256, 1536, dtype).to(device)
    x = torch.randn(tokens, 1536, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    packed = kernel.pack(dense)
    assert sum(part.nbytes for part in packed) <= dense.nbytes * 9 // 16
    assert torch.equal(sparse24.expand(packed, kernel, (256, 1536), dtype), dense)
    expected = x.double() @ dense.double().T
    error = (sparse24.matmul(x, packed, kernel, 256).double() - expected).norm() / expected.norm()
    assert error < (4e-3 if dtype == torch.bfloat16 else 5e-4)
