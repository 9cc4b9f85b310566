"""What the inputs that stay can say of those that go: the least-squares weights of a matrix without some columns.

For inputs with Gram matrix XX, normalised to A = XX / (n n^T) with n_j = sqrt(XX_jj) and damped, the weights on the
kept columns k that come closest to the dense W (scaled to W n) are

    V_k = V A_:,k (A_kk)^-1,   V = W n,   W'_k = V_k / n_k

the minimum of tr((V' - V) A (V' - V)^T), found with one Cholesky factorisation. With the damping in both places,
nothing changes if nothing goes. (`modicum.kernels.refit` is for masks that differ from row to row.)
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-8


def reform(weight: Tensor, gram: Tensor, kept: Tensor, damp: float = 0.1) -> Tensor:
    """The best weights with all other columns zero.

    Args:
        weight: [out, in], dense.
        gram: X^T X of its inputs, [in, in].
        kept: bool [in].
        damp: fraction of the mean diagonal that is added to the diagonal; more than 0.

    Returns:
        float32 [out, in].
    """
    gram = gram.double()
    norm = gram.diagonal().sqrt() + TINY
    damped = gram / (norm * norm[:, None])
    damped.diagonal().add_(damp * damped.diagonal().mean().clamp_min(TINY))
    aimed = (weight.double() * norm) @ damped[:, kept]  # [out, kept]
    factor = torch.linalg.cholesky(damped[kept][:, kept])
    solved = torch.cholesky_solve(aimed.t(), factor).t()
    reformed = torch.zeros_like(weight, dtype=torch.float32)
    reformed[:, kept] = (solved / norm[kept]).float()
    return reformed
