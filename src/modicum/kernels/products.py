"""Faster float32 matrix products where the factors are bfloat16 numbers.

The product of two bfloat16 numbers is exact in float32. A processor with bfloat16 units can therefore form such a
product sum from the short factors without losing anything, at twice the speed. `mixed_products` lets float32 products
inside the context take that way; it is only right when every factor was bfloat16 before it was widened.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch


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


@cache
def _has_bfloat16_units() -> bool:
    if not hasattr(torch.backends.mkldnn, "matmul"):
        return False
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())
