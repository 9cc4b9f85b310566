"""2:4 sparse weights times activations with the sparse tensor cores of a GPU.

From compute capability 8.0 on (A100, H100 ...) a GPU multiplies a matrix in which at most two of four neighbouring
weights are nonzero without touching the others: half the arithmetic, and 9/16 of the bytes are read. PyTorch reaches
these units in two ways:

    cuSPARSELt    NVIDIA's library, part of PyTorch's CUDA wheels where it is available; capability 8.0 and later
    CUTLASS       compiled into PyTorch; capability 8.x only, H100 and later are refused

Each keeps values and positions in an order of its own. Shapes must be multiples of some block, the dtype must be
float16 or bfloat16, and tokens come in eights: fewer are filled up with zeros, and the surplus is cut off.

The operators that PyTorch's `SparseSemiStructuredTensor` consists of are called directly, which saves the dispatches in
Python that the tensor class costs.

What is saved for certain is memory. PyTorch has cuSPARSELt plan every product anew: issuing one took 0.4 ms of the
processor's time beside an H100, and the kernels alone took 0.9 to 4 times as long as dense ones in bfloat16
(`benchmarks/gpu/semi_structured.py`). So nothing uses them without being told to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

CAPABILITY = (8, 0)
"""The first compute capability with sparse tensor cores."""

DTYPES = (torch.float16, torch.bfloat16)
TOKENS = 8
"""The number of tokens must be a multiple of it."""

_EXPANDED = 1024  # columns of the identity that are multiplied together

Packed = tuple[Tensor, ...]
"""Values and positions in the order of a kernel."""


@dataclass(frozen=True)
class Kernel:
    """One way to the sparse tensor cores.

    Attributes:
        name: for people.
        rows: outputs come in multiples of it.
        columns: inputs come in multiples of it.
        available: whether this build of PyTorch has it.
        pack: a dense matrix [out, in] that is 2:4 sparse, on the device, in the kernel's order.
        multiply: x [tokens, in] with tokens a multiple of 8, packed, out: x W^T [tokens, out].
    """

    name: str
    rows: int
    columns: int
    available: Callable[[], bool]
    pack: Callable[[Tensor], Packed]
    multiply: Callable[[Tensor, Packed, int], Tensor]

    def refuses(self, out_features: int, in_features: int, dtype: torch.dtype) -> str:
        """Why a matrix of this shape and dtype cannot be multiplied; empty if it can."""
        if dtype not in DTYPES:
            return f"{str(dtype).removeprefix('torch.')} is not float16 or bfloat16"
        if out_features % self.rows or in_features % self.columns:
            return f"[{out_features}, {in_features}] is not a multiple of [{self.rows}, {self.columns}]"
        return ""


def _has_cusparselt() -> bool:
    return torch.backends.cusparselt.is_available()


def _pack_cusparselt(dense: Tensor) -> Packed:
    return (torch._cslt_compress(dense),)  # values, then positions


def _multiply_cusparselt(x: Tensor, packed: Packed, out_features: int) -> Tensor:
    return torch._cslt_sparse_mm(packed[0], x.t(), transpose_result=True)


def _has_cutlass() -> bool:
    return hasattr(torch, "_sparse_semi_structured_mm")


def _pack_cutlass(dense: Tensor) -> Packed:
    return sparse_semi_structured_from_dense_cutlass(dense)  # values [out, in / 2], int16 [out, in / 16]


def _multiply_cutlass(x: Tensor, packed: Packed, out_features: int) -> Tensor:
    values, positions = packed
    return torch._sparse_semi_structured_mm(values, positions, x.t()).t().contiguous()


CUSPARSELT = Kernel("cuSPARSELt", 16, 16, _has_cusparselt, _pack_cusparselt, _multiply_cusparselt)
CUTLASS = Kernel("CUTLASS", 32, 64, _has_cutlass, _pack_cutlass, _multiply_cutlass)
KERNELS = (CUSPARSELT, CUTLASS)
"""In the order in which they are tried."""


@cache
def kernel_for(device: torch.device) -> Kernel | None:
    """The first kernel that multiplies right on `device`, or None: a processor, an older GPU, another build.

    Each is tried on a small matrix, because what works depends on GPU, driver, library and PyTorch together.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < CAPABILITY:
        return None
    return next((kernel for kernel in KERNELS if kernel.available() and _is_right(kernel, device)), None)


def _is_right(kernel: Kernel, device: torch.device) -> bool:
    """Whether the kernel runs here and finds the product of small whole numbers, which no rounding touches."""
    size = 64
    places = torch.arange(size, device=device)
    kept = (places + places[:, None]) % 4 < 2  # other pairs in every row
    weight = torch.arange(size * size, device=device).view(size, size).remainder(5).sub(2) * kept
    x = torch.arange(TOKENS * size, device=device).view(TOKENS, size).remainder(3).sub(1)
    for dtype in DTYPES:
        dense, tokens = weight.to(dtype), x.to(dtype)
        try:
            found = kernel.multiply(tokens, kernel.pack(dense), size)
        except RuntimeError:  # not made for this GPU
            return False
        if not torch.equal(found.float(), tokens.float() @ dense.float().T):
            return False
    return True


def refusal(
    pattern: tuple[int, int], shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> str:
    """Why a matrix is not multiplied as a sparse one; empty if it is.

    Args:
        pattern: (N, M) of it.
        shape: (out, in).
        dtype: of its weights.
        device: where it is.
    """
    if pattern != (2, 4):
        return f"{pattern[0]}:{pattern[1]} is not 2:4"
    kernel = kernel_for(device)
    return f"there is no kernel for {device.type}" if kernel is None else kernel.refuses(*shape, dtype)


def matmul(x: Tensor, packed: Packed, kernel: Kernel, out_features: int) -> Tensor:
    """x [..., in] times the transposed matrix that `kernel` packed: [..., out]."""
    flat = x.reshape(-1, x.shape[-1])
    tokens = len(flat)
    if tokens % TOKENS:
        flat = F.pad(flat, (0, 0, 0, -tokens % TOKENS))
    product = kernel.multiply(flat.contiguous(), packed, out_features)
    return product[:tokens].view(*x.shape[:-1], out_features)


def expand(packed: Packed, kernel: Kernel, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The dense matrix again, [out, in]: the product with the identity, in which nothing is rounded.

    Args:
        packed: by `kernel`.
        kernel: that packed it.
        shape: (out, in).
        dtype: of the values.
    """
    rows, columns = shape
    dense = packed[0].new_empty(shape, dtype=dtype)
    for start in range(0, columns, _EXPANDED):
        stop = min(start + _EXPANDED, columns)
        identity = dense.new_zeros(stop - start, columns)
        identity[:, start:stop].fill_diagonal_(1)
        dense[:, start:stop] = matmul(identity, packed, kernel, rows).t()
    return dense
