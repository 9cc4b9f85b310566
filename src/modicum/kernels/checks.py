"""Questions about whole matrices, answered without a copy of them: is all of it finite, how far is it from another."""

from __future__ import annotations

import torch
from torch import Tensor

from modicum.kernels.chunks import row_chunks


def all_finite(tensor: Tensor) -> bool:
    """Whether no entry of a float tensor of any shape is NaN or infinite."""
    if not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)  # NaN wins over every number
    return bool(torch.isfinite(low) & torch.isfinite(high))


def relative_error(changed: Tensor, reference: Tensor, scale: Tensor | None = None) -> float:
    """|(changed - reference) scale|_F / |reference scale|_F, in float32 with float64 sums.

    Args:
        changed: any float dtype, [out, in].
        reference: any float dtype, [out, in].
        scale: of every column, float32 [in]; None = 1.
    """
    lost = whole = 0.0
    for rows in row_chunks(len(reference), 4 * reference.shape[1]):
        right = reference[rows].float()
        error = changed[rows].float() - right
        if scale is not None:
            right, error = right * scale, error.mul_(scale)
        lost += float(error.norm()) ** 2
        whole += float(right.norm()) ** 2
    return lost**0.5 / max(whole**0.5, 1e-30)
