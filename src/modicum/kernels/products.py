"""Faster matrix products where the factors are bfloat16 numbers.

The product of two bfloat16 numbers is exact in float32. A processor with bfloat16 units can therefore form such a
product sum from the short factors without losing anything, at twice the speed. `mixed_products` lets float32 products
inside the context take that way; it is only right when every factor was bfloat16 before it was widened.

A processor without such units is the opposite case: torch then forms bfloat16 products one by one, ten to thirty times
slower than float32 ones. `widened_products` lets bfloat16 products inside the context be formed in float32 and
rounded at the end, which is what the units would do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_PRODUCTS: frozenset[Any] = frozenset(
    {
        F.linear,
        F.conv1d,
        F.conv2d,
        F.scaled_dot_product_attention,
        torch.matmul,
        torch.bmm,
        torch.Tensor.matmul,
        torch.Tensor.__matmul__,
    }
)


@contextmanager
def mixed_products(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Within: float32 products on the CPU read their factors as bfloat16, if that loses nothing and gains speed.

    Args:
        dtype: what the factors were before they were widened to float32.
        device: where the product is formed.
    """
    matmul: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if dtype != torch.bfloat16 or device.type != "cpu" or not _has_bfloat16_units():
        yield
        return
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@contextmanager
def widened_products() -> Iterator[None]:
    """Within: products of bfloat16 tensors on a CPU without bfloat16 units are formed in float32, then rounded."""
    if widens():
        with _Widened():
            yield
    else:
        yield


def widens() -> bool:
    """Whether `widened_products` changes anything on this processor; each product then copies its factors."""
    return not _has_bfloat16_units()


class _Widened(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _PRODUCTS and any(_is_short(value) for value in args):
            args = tuple(_wide(value) for value in args)
            return function(*args, **{key: _wide(value) for key, value in kwargs.items()}).bfloat16()
        return function(*args, **kwargs)


def _is_short(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16 and value.device.type == "cpu"


def _wide(value: Any) -> Any:
    return value.float() if _is_short(value) else value


@cache
def _has_bfloat16_units() -> bool:
    if not hasattr(torch.backends.mkldnn, "matmul"):
        return False
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())
