"""Second-order column sweep: change the weights of one column, let the later columns make up for it.

A layer with inputs X has the output error tr(dW H dW^T) with H = X^T X. The sweep visits the columns of W
once. At column c some weights are forced to new values q (zero, or a point of a grid); the error e = (w -
q) / U_cc is then spread over the columns that are still free, W[:, c+1:] -= e U[c, c+1:], which is the
optimal correction because U, the upper Cholesky factor of H^-1, holds exactly what the inverses of all the
shrinking sub-problems would say. With q = 0 on a mask this is SparseGPT (arXiv 2301.00774), with q on an
integer grid it is GPTQ (arXiv 2210.17323), and with both it prunes and quantises in one go: masked weights
take the zero of the grid and their error is spread as well.

Departures: U comes from one Cholesky factorisation and one triangular inverse instead of three
factorisations (the same matrix, less rounding); masks have an exact count; a group's grid is always fitted
to weights that carry all corrections of the columns before it, also when the group is shorter than a block.

Work is lazy on two levels. Columns are updated one by one inside a sub-block of 32, the rest of a block of
128 once per sub-block, and everything behind it once per block, each time with one matrix product. W is
kept transposed, so that a column is contiguous. Nothing in the loop waits for a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from modicum.kernels.allocator import MAPPED
from modicum.kernels.cholesky import NotPositiveDefinite, inverse_cholesky
from modicum.kernels.chunks import chunked_bytes, row_chunks
from modicum.kernels.rounding import ColumnRounding, DynamicGrid, StaticGrid
from modicum.kernels.selectors import Fixed, Selector, SemiStructured, Unstructured

__all__ = [
    "DynamicGrid",
    "Fixed",
    "NotPositiveDefinite",
    "Selector",
    "SemiStructured",
    "StaticGrid",
    "Swept",
    "Unstructured",
    "inverse_cholesky",
    "solver_bytes",
    "sweep",
]

BLOCK = 128
SUB_BLOCK = 32


def solver_bytes(rows: int, width: int) -> int:
    """Bytes at the peak of `inverse_cholesky` and `sweep` of a matrix [rows, width], Gram matrix included."""
    gram, columns = 4 * width * width, 4 * rows * width
    gaps = gram if gram < MAPPED else 0
    block = 4 * 4 * BLOCK * rows  # the errors of a block of columns, their products and scores
    return max(5 * gram // 2 + gaps, gram + columns + columns // 4 + block) + chunked_bytes(rows * width)


@dataclass(frozen=True, eq=False)
class Swept:
    """What a sweep leaves behind. The matrices are transposed views: a sweep works on columns.

    Args:
        weight: float32 [out, in], exactly zero where the mask is True, exactly on the grid if there is one.
        mask: bool [out, in], True = pruned; None without a selector.
        codes: int8 [out, in]; None without a grid.
        scale: [out, groups] in its stored dtype; None without a grid.
        zero_point: int32 [out, groups]; None without a grid or for a symmetric one.
        loss: float32 scalar, sum of e^2 / 2: half the increase of tr(dW H dW^T) that the sweep expects.
    """

    weight: Tensor
    mask: Tensor | None
    codes: Tensor | None
    scale: Tensor | None
    zero_point: Tensor | None
    loss: Tensor


def sweep(
    weight: Tensor,
    factor: Tensor,
    *,
    selector: Selector | None = None,
    grid: DynamicGrid | StaticGrid | None = None,
    block_size: int = BLOCK,
) -> Swept:
    """Prune and/or quantise `weight` column by column, correcting the later columns for each error.

    Args:
        weight: [out, in]; columns of dead inputs should be zero. Not modified.
        factor: U of `inverse_cholesky`, float32 [in, in], in the same column order.
        selector: which weights are pruned; None = none.
        grid: the grid they are rounded to; None = none.
        block_size: columns per lazy update; changes speed, not results.

    Returns:
        The new weights with mask, codes and grid.

    Raises:
        InvalidSetting: the row length does not suit the selector.
    """
    state = _State(weight, factor, selector, grid)
    width = weight.shape[1]
    outer = _cuts(width, block_size, state.spans)
    inner = sorted({*outer, *_cuts(width, min(block_size, SUB_BLOCK), state.spans)})
    for start, stop in pairwise(outer):
        errors = torch.empty_like(state.columns[start:stop])  # [block, out]
        for first, last in pairwise([c for c in inner if start <= c <= stop]):
            recent = errors[first - start : last - start]
            state.visit(first, last, recent)
            if last < stop:
                state.columns[last:stop].addmm_(factor[first:last, last:stop].T, recent, alpha=-1)
        state.loss += errors.square().sum()
        if stop < width:
            state.columns[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    return state.result()


def _cuts(width: int, step: int, spans: Sequence[int]) -> list[int]:
    """Columns at which all pending corrections are applied, 0 and `width` included.

    Every multiple of `step`; if some span does not nest with it, the start of every span as well, so that
    what is decided over a span always sees corrected weights.
    """
    steps = sorted({step, *(span for span in spans if span < width)})
    nested = all(longer % shorter == 0 for shorter, longer in pairwise(steps))
    return sorted({width, *(c for s in ([step] if nested else steps) for c in range(0, width, s))})


class _State:
    """The transposed weights of one sweep with everything that is decided along the way."""

    def __init__(
        self,
        weight: Tensor,
        factor: Tensor,
        selector: Selector | None,
        grid: DynamicGrid | StaticGrid | None,
    ) -> None:
        self.columns = _transposed(weight)  # [in, out]
        self.factor = factor
        self.diagonal = factor.diagonal().contiguous()
        self.selector = selector
        self.pruned = torch.zeros_like(self.columns, dtype=torch.bool) if selector else None  # [in, out]
        self.loss = torch.zeros((), device=weight.device)
        self.rounding = ColumnRounding(grid, self.columns) if grid else None
        width = weight.shape[1]
        self.selector_span = selector.span(width) if selector else width
        grid_span = grid.scheme.span(width) if isinstance(grid, DynamicGrid) else width
        self.spans = (self.selector_span, grid_span)

    def visit(self, first: int, last: int, errors: Tensor) -> None:
        """Settle the columns [first, last) in turn; their scaled errors go to `errors` [cols, out]."""
        factors = self.factor[first:last, first:last].unsqueeze(-1)  # [cols, cols, 1]
        inverse = self.diagonal[first:last].reciprocal()
        for i, c in enumerate(range(first, last)):
            self._decide(c)
            column, error = self.columns[c], errors[i]
            mask = None if self.pruned is None else self.pruned[c]
            settled = self._settle(c, column, mask)
            torch.sub(column, settled, out=error)
            error.mul_(inverse[i])
            column.copy_(settled)
            if c + 1 < last:
                self.columns[c + 1 : last].addcmul_(factors[i, i + 1 :], error, value=-1)

    def _decide(self, c: int) -> None:
        """Choose the mask and fit the grid of what starts at column `c`."""
        if self.selector is not None and self.pruned is not None and c % self.selector_span == 0:
            ahead = slice(c, c + self.selector_span)
            self.pruned[ahead] = self.selector.choose(self.columns[ahead], self.diagonal[ahead], c)
        if self.rounding is not None:
            self.rounding.start(c, self.columns, self.pruned)

    def _settle(self, c: int, column: Tensor, mask: Tensor | None) -> Tensor:
        """The final values of column `c`: zero where pruned, on the grid if there is one."""
        if self.rounding is not None:
            return self.rounding.round(c, column, mask)
        return column if mask is None else column.masked_fill(mask, 0.0)

    def result(self) -> Swept:
        """Everything as [out, in]."""
        codes, scale, zero_point = self.rounding.result() if self.rounding else (None, None, None)
        mask = None if self.pruned is None else self.pruned.T
        return Swept(self.columns.T, mask, codes, scale, zero_point, self.loss / 2)


def _transposed(matrix: Tensor) -> Tensor:
    """[rows, k] in any dtype to a contiguous float32 [k, rows], without a float32 copy in between."""
    rows, k = matrix.shape
    result = matrix.new_empty(k, rows, dtype=torch.float32)
    for part in row_chunks(k, 4 * rows):
        result[part] = matrix[:, part].float().T
    return result
