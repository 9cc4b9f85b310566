"""GPTQ: quantize column by column, and let the columns that are left make up for the rounding."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from modicum.calibrate.statistics import Statistics
from modicum.kernels.chunks import row_chunks
from modicum.kernels.compensation import DynamicGrid, Fixed, StaticGrid, inverse_cholesky, solver_bytes, sweep
from modicum.kernels.grids import fit_grid, group_index
from modicum.method import Paper, Target
from modicum.quantize.grid import IntegerMethod
from modicum.weights.base import WeightForm
from modicum.weights.packed import PackedWeight

Codes = tuple[Tensor, Tensor, Tensor | None]  # codes [out, in], scale and zero point [out, groups]


class GPTQ(IntegerMethod):
    """Quantize with second-order error compensation.

    H = X^T X + damp mean(diag) I, U the upper Cholesky factor of H^-1. Column j is rounded to its grid, and its error
    e = (w - q) / U_jj is taken out of the later columns, W[:, j:] -= e U[j, j:]. With `act_order` the columns go in
    order of falling diag(H), on grids fitted beforehand, so that the stored order needs no permutation; without it
    each group's grid is fitted to the weights as corrected so far. Entries that an earlier step pruned stay exactly
    zero, and their error is compensated as well.
    """

    paper: ClassVar[Paper] = Paper(
        "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
        "ICLR 2023",
        "2210.17323",
    )

    damp: float = Field(0.01, gt=0, le=1, description="fraction of the mean diagonal added to the Hessian")
    act_order: bool = Field(True, description="visit the columns in order of falling activation energy")
    block_size: int = Field(128, ge=1, description="columns between two updates of the rest; speed only")

    def statistics(self) -> frozenset[str]:
        return frozenset({"gram"})

    def workspace(self, weight: Tensor) -> int:
        reordered = weight.nbytes if self.act_order else 0
        return solver_bytes(*weight.shape) + reordered

    def compress(self, target: Target, statistics: Statistics) -> WeightForm:
        dead = statistics.square_sum == 0
        weight = target.weight.masked_fill(dead, 0) if bool(dead.any()) else target.weight
        sweep_order = self._in_activation_order if self.act_order else self._in_stored_order
        codes, scale, zero_point = sweep_order(weight, statistics, target.zeros)
        return PackedWeight.from_codes(codes, scale, zero_point, self.scheme(), target.bias, weight.dtype)

    def _in_stored_order(self, weight: Tensor, statistics: Statistics, zeros: Tensor | None) -> Codes:
        factor, _, _ = inverse_cholesky(statistics.gram, self.damp)
        selector = None if zeros is None else Fixed(zeros)
        grid = DynamicGrid(self.scheme(), weight.dtype)
        swept = sweep(weight, factor, selector=selector, grid=grid, block_size=self.block_size)
        assert swept.codes is not None
        assert swept.scale is not None
        return swept.codes, swept.scale, swept.zero_point

    def _in_activation_order(self, weight: Tensor, statistics: Statistics, zeros: Tensor | None) -> Codes:
        scheme = self.scheme()
        order = torch.argsort(statistics.square_sum, descending=True, stable=True)
        factor, _, _ = inverse_cholesky(_reordered(statistics.gram, order), self.damp)
        scale, zero_point = fit_grid(weight, scheme, weight.dtype)
        groups = group_index(weight.shape[1], scheme, weight.device)[order]
        selector = None if zeros is None else Fixed(zeros[:, order])
        grid = StaticGrid(scheme, scale, zero_point, groups)
        swept = sweep(weight[:, order], factor, selector=selector, grid=grid, block_size=self.block_size)
        assert swept.codes is not None
        return swept.codes.T[torch.argsort(order)].T, scale, zero_point


def _reordered(gram: Tensor, order: Tensor) -> Tensor:
    """gram[order][:, order]; the columns are reordered in place, so that only one copy is made."""
    for rows in row_chunks(len(gram), 4 * len(gram)):
        gram[rows] = gram[rows][:, order]
    return gram[order]
