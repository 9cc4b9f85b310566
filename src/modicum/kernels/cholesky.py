"""The factor of an inverse: U with H^-1 = U^T U, from one factorisation, in the memory of H and one matrix more.

H = R R^T with R upper triangular is an ordinary Cholesky factorisation of H with rows and columns reversed, and then
U = R^-1. Reversing, scaling and inverting happen in place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modicum.kernels.chunks import row_chunks


class NotPositiveDefinite(ArithmeticError):
    """A Gram matrix that has no Cholesky factor even with strong damping in double precision."""


def inverse_cholesky(gram: Tensor, damp: float) -> tuple[Tensor, Tensor, float]:
    """The upper Cholesky factor U of H^-1 = U^T U, with H = gram + damp * mean(diag) * I.

    Damping is doubled, up to 0.1, when the factorisation fails, and then tried once more in float64. Inputs
    that never fired (zero diagonal) get the mean diagonal instead; their weights should be zeroed by the
    caller.

    Args:
        gram: X^T X or a multiple of it, [in, in]. Its memory is used for the work; pass a copy to keep it.
        damp: fraction of the mean diagonal that is added to the diagonal.

    Returns:
        U float32 [in, in]; dead bool [in]; the damping that was used.

    Raises:
        NotPositiveDefinite: no factor was found.
    """
    gram = gram.float().contiguous()
    diagonal = gram.diagonal()
    dead = diagonal == 0
    mean = _mean_diagonal(gram, dead)
    gram /= mean  # the mean diagonal is 1, so damping and dead inputs do not depend on the scale
    diagonal.masked_fill_(dead, 1.0)
    _turn_around(gram)
    plain = diagonal.clone()
    for used, dtype in _damping_ladder(damp):
        factor = _factor(gram.to(dtype), plain.to(dtype) + used)
        if factor is not None:
            return factor.div_(mean.to(dtype).sqrt()).float(), dead, used
    raise NotPositiveDefinite(f"no Cholesky factor with damping up to {max(damp, 0.1)}")


def damped(gram: Tensor, dead: Tensor, damp: float) -> Tensor:
    """The H whose inverse `inverse_cholesky` factors, in the memory of `gram`.

    Args:
        gram: as it was given to `inverse_cholesky`, [in, in].
        dead: as it was returned, bool [in].
        damp: as it was returned.
    """
    mean = _mean_diagonal(gram, dead)
    gram.diagonal().masked_fill_(dead, float(mean)).add_(damp * mean)
    return gram


def _mean_diagonal(gram: Tensor, dead: Tensor) -> Tensor:
    """Mean over the inputs that fired; 1 if none did."""
    return torch.where(dead.all(), 1.0, gram.diagonal().sum() / (~dead).sum().clamp(min=1))


def _turn_around(matrix: Tensor) -> None:
    """Reverse the rows and the columns of a contiguous matrix in place."""
    flat = matrix.view(-1)
    size = len(flat)
    for part in row_chunks(size // 2, flat.element_size()):
        front, back = flat[part], flat[size - part.stop : size - part.start]
        kept = front.flip(0)
        front.copy_(back.flip(0))
        back.copy_(kept)


def _damping_ladder(damp: float) -> list[tuple[float, torch.dtype]]:
    """damp, 2 damp, 4 damp ... 0.1 in float32, then the last one in float64."""
    rungs = [damp]
    while rungs[-1] < 0.1:
        rungs.append(min(max(2 * rungs[-1], 0.01), 0.1))
    return [(rung, torch.float32) for rung in rungs] + [(rungs[-1], torch.float64)]


def _factor(turned: Tensor, diagonal: Tensor) -> Tensor | None:
    """U of a matrix with this diagonal, rows and columns reversed, or None when it has none."""
    turned.diagonal().copy_(diagonal)
    lower, info = torch.linalg.cholesky_ex(turned)
    if info.item() != 0:
        return None
    _invert_lower(lower)
    factor = lower.T  # contiguous, as LAPACK works by columns
    _turn_around(factor)
    low, high = torch.aminmax(factor)
    return factor.T if bool(torch.isfinite(high - low)) else None


def _invert_lower(lower: Tensor, leaf: int = 128) -> None:
    """Invert a lower triangular matrix in place, by halves: half the time of a triangular solve with I."""
    size = lower.shape[0]
    if size <= leaf:
        identity = torch.eye(size, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))
        return
    half = size // 2
    top, left, right = lower[:half, :half], lower[half:, :half], lower[half:, half:]
    _invert_lower(top, leaf)
    _invert_lower(right, leaf)
    product = right @ left
    left.copy_(product.neg_() @ top)
