"""A 2:4 matrix in the order of a kernel: one copy of the weights, the same matrix, and the way back."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass

from modicum.errors import CheckpointError
from modicum.evaluate.size import memory_size
from modicum.kernels import sparse24
from modicum.weights import SemiStructuredWeight


def multiply_here(x: Tensor, packed: sparse24.Packed, out_features: int) -> Tensor:
    assert not (torch.is_grad_enabled() and x.requires_grad)  # the kernels have no backward pass
    return (x.float() @ sparse_semi_structured_to_dense_cutlass(*packed).float().T).to(x.dtype)


HERE = replace(sparse24.CUTLASS, name="processor", multiply=multiply_here)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> sparse24.Kernel:
    """A processor that has sparse tensor cores."""
    monkeypatch.setattr(sparse24, "kernel_for", lambda device: HERE)
    return HERE


def weight(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16, n: int = 2, m: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(rows, columns, generator=generator).view(rows, -1, m)
    dense[..., n:] = 0
    places = torch.rand(rows, columns // m, m, generator=generator).argsort(-1)
    return dense.gather(-1, places).view(rows, columns).to(dtype)


def form_of(dense: Tensor, n: int = 2, m: int = 4, bias: bool = True) -> SemiStructuredWeight:
    return SemiStructuredWeight.from_dense(
        dense, n, m, bias=torch.linspace(-1, 1, len(dense)).to(dense.dtype) if bias else None
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 8, 21])
def test_the_product_is_the_dense_one(kernel: sparse24.Kernel, tokens: int, bias: bool) -> None:
    dense = weight(64, 128)
    form = form_of(dense, bias=bias)
    x = torch.randn(2, tokens, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    product = form(x)
    assert form.kernel == kernel
    torch.testing.assert_close(product, F.linear(x, dense, form.bias), rtol=2e-2, atol=2e-2)


def test_the_matrix_is_kept_once_and_in_the_same_bytes(kernel: sparse24.Kernel) -> None:
    dense = weight(64, 128)
    form = form_of(dense, bias=False)
    assert memory_size(form) == form.nbytes == dense.nbytes * 9 // 16
    form.enter_kernel_layout()
    form.enter_kernel_layout()
    assert memory_size(form) == form.nbytes == dense.nbytes * 9 // 16
    assert torch.equal(form.to_dense(), dense)


def test_what_is_saved_does_not_depend_on_the_kernel(kernel: sparse24.Kernel) -> None:
    dense = weight(64, 128)
    form, before = form_of(dense), form_of(dense)
    form.enter_kernel_layout()
    assert set(form.state_dict()) == {"weight_values", "weight_index", "bias"}
    form.enter_kernel_layout()
    assert {k: v.tolist() for k, v in form.tensors().items()} == {
        k: v.tolist() for k, v in before.tensors().items()
    }
    form.check()
    form.enter_kernel_layout()
    form.load_state_dict(form_of(2 * dense).state_dict())
    assert torch.equal(form.to_dense(), 2 * dense)
    form.weight_index.zero_()
    with pytest.raises(CheckpointError, match="2 of 4"):
        form.check()


def test_a_form_follows_casts_out_of_the_kernel_and_back(kernel: sparse24.Kernel) -> None:
    dense = weight(64, 128)
    form = form_of(dense)
    x = torch.ones(1, 128)
    form(x.bfloat16())
    form.float()
    assert form.kernel is None
    assert torch.equal(form(x), F.linear(x, dense.float(), form.bias))
    assert form.kernel is None
    form.bfloat16()(x.bfloat16())
    assert form.kernel is kernel
    assert torch.equal(form.to_dense(), dense)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda form: pickle.loads(pickle.dumps(form))])
def test_copies_multiply_alike(monkeypatch: pytest.MonkeyPatch, clone) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(sparse24, "kernel_for", lambda device: HERE)
    form, x = form_of(weight(64, 128)), torch.ones(3, 128, dtype=torch.bfloat16)
    product = form(x)
    other = clone(form)
    assert other.kernel == HERE
    assert torch.equal(other(x), product)


def test_gradients_pass_through_the_dense_product(kernel: sparse24.Kernel) -> None:
    dense = weight(64, 128)
    form = form_of(dense)
    form.enter_kernel_layout()
    x = torch.ones(3, 128, dtype=torch.bfloat16, requires_grad=True)
    form(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, dense.float().sum(0).expand(3, -1).bfloat16(), rtol=2e-2, atol=2e-2)


def test_other_patterns_dtypes_and_shapes_stay_dense(kernel: sparse24.Kernel) -> None:
    device = torch.device("cpu")
    for form, words in [
        (form_of(weight(64, 128, n=4, m=8), 4, 8), "4:8 is not 2:4"),
        (form_of(weight(64, 128, n=1, m=4), 1, 4), "1:4 is not 2:4"),
        (form_of(weight(64, 128, torch.float32)), "float32"),
        (form_of(weight(48, 128)), "[48, 128]"),
    ]:
        assert words in form.refusal(device)
        form(torch.ones(1, 128, dtype=form.dtype))
        assert form.kernel is None
    suiting = form_of(weight(64, 128))
    assert suiting.refusal(device) == ""
    assert suiting(torch.ones(0, 128, dtype=torch.bfloat16)).shape == (0, 64)
    assert suiting.kernel is None


def test_without_a_kernel_nothing_changes() -> None:
    form = form_of(weight(64, 128))
    assert "cpu" in form.refusal(torch.device("cpu"))
    form(torch.ones(1, 128, dtype=torch.bfloat16))
    assert form.kernel is None
