"""bfloat16 products on processors with and without bfloat16 units; both kinds are simulated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.kernels import products


@pytest.fixture(params=[True, False], ids=["units", "no-units"])
def units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(products, "_has_bfloat16_units", lambda: request.param)
    return request.param


def short(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


def test_a_product_is_that_of_the_wide_factors_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_has_bfloat16_units", lambda: False)
    x, w, b = short(5, 64), short(7, 64), short(7)
    q = short(1, 2, 6, 8)
    with products.widened_products():
        found = [F.linear(x, w, b), x @ w.T, torch.matmul(x, w.T), F.scaled_dot_product_attention(q, q, q)]
    wide = q.float()
    wanted = [
        F.linear(x.float(), w.float(), b.float()),
        x.float() @ w.float().T,
        x.float() @ w.float().T,
        F.scaled_dot_product_attention(wide, wide, wide),
    ]
    for got, want in zip(found, wanted, strict=True):
        assert got.dtype == torch.bfloat16
        assert torch.equal(got, want.bfloat16())


def test_a_module_keeps_its_dtypes_and_its_weights(units: bool) -> None:
    layer = nn.Linear(16, 3).bfloat16()
    before = layer.weight.clone()
    with products.widened_products():
        out = layer(short(4, 16))
    assert out.dtype == torch.bfloat16
    assert torch.equal(layer.weight, before)
    assert products.widens() is not units
    torch.testing.assert_close(out, layer(short(4, 16)), rtol=2e-2, atol=2e-2)


def test_other_dtypes_are_left_alone_and_the_context_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_has_bfloat16_units", lambda: False)
    x = torch.randn(3, 8, dtype=torch.float64)
    with products.widened_products():
        assert torch.equal(F.linear(x, x), x @ x.T)
        assert (x @ x.T).dtype == torch.float64
    seen = []
    monkeypatch.setattr(products, "_wide", lambda value: seen.append(value) or value)
    F.linear(short(2, 4), short(3, 4))
    assert not seen
