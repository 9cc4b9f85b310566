"""The integer grid of a column sweep: fitted group by group on the way (GPTQ), or given beforehand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from modicum.kernels.grids import IntegerScheme, fit_grid


@dataclass(frozen=True)
class DynamicGrid:
    """Fit the grid of a group to the current weights when the sweep reaches its first column.

    Args:
        scheme: the integer grid.
        scale_dtype: dtype in which scales are stored and rounded.
        search: clip search, see `modicum.kernels.grids.fit_grid`.
    """

    scheme: IntegerScheme
    scale_dtype: torch.dtype = torch.float32
    search: bool = False


@dataclass(frozen=True, eq=False)
class StaticGrid:
    """Grids that were fitted beforehand; needed when columns are visited in another order (act-order).

    Args:
        scheme: the integer grid.
        scale: [out, groups].
        zero_point: int32 [out, groups] or None.
        column_group: group of each column in the order of the sweep, int64 [in]; None = consecutive groups.
    """

    scheme: IntegerScheme
    scale: Tensor
    zero_point: Tensor | None = None
    column_group: Tensor | None = None


class ColumnRounding:
    """The grid of a running sweep: one row of parameters per group, [groups, out], filled on the way."""

    def __init__(self, grid: DynamicGrid | StaticGrid, columns: Tensor) -> None:
        width, rows = columns.shape
        self.grid, self.scheme = grid, grid.scheme
        self.codes = torch.empty_like(columns, dtype=torch.int8)  # [in, out]
        self.group_of = [c // self.scheme.span(width) for c in range(width)]
        if isinstance(grid, StaticGrid):
            if grid.column_group is not None:
                self.group_of = grid.column_group.tolist()
            self.scale = grid.scale.T.float().contiguous()
            self.zero = None if grid.zero_point is None else grid.zero_point.T.float().contiguous()
        else:
            groups = self.scheme.groups(width)
            self.scale = columns.new_empty(groups, rows)
            self.zero = None if self.scheme.symmetric else columns.new_empty(groups, rows)

    def start(self, c: int, columns: Tensor, pruned: Tensor | None) -> None:
        """Fit the grid of the group that starts at column `c`, if one does and it is not given."""
        span = self.scheme.span(columns.shape[0])
        if isinstance(self.grid, StaticGrid) or c % span:
            return
        current = columns[c : c + span]
        if pruned is not None:
            current = current.masked_fill(pruned[c : c + span], 0.0)
        whole = IntegerScheme(self.scheme.bits, -1, self.scheme.symmetric)
        scale, zero_point = fit_grid(current.T, whole, self.grid.scale_dtype, search=self.grid.search)
        self.scale[c // span] = scale[:, 0]
        if self.zero is not None and zero_point is not None:
            self.zero[c // span] = zero_point[:, 0]

    def round(self, c: int, column: Tensor, mask: Tensor | None) -> Tensor:
        """The nearest grid points of a column [out]; zero where the mask is True. Their codes are stored."""
        group = self.group_of[c]
        scale, scheme = self.scale[group], self.scheme
        steps = (column / scale).round_()
        if self.zero is None:
            steps.clamp_(scheme.lowest, scheme.highest)
        else:
            steps.clamp_(scheme.lowest - self.zero[group], scheme.highest - self.zero[group])
        if mask is not None:
            steps.masked_fill_(mask, 0.0)
        self.codes[c] = steps if self.zero is None else steps + self.zero[group]
        return steps.mul_(scale)

    def result(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes int8 [out, in], scale in its stored dtype and zero point int32 (or None) [out, groups]."""
        codes = self.codes.T
        if isinstance(self.grid, StaticGrid):
            return codes, self.grid.scale, self.grid.zero_point
        zero_point = None if self.zero is None else self.zero.T.to(torch.int32).contiguous()
        return codes, self.scale.T.to(self.grid.scale_dtype).contiguous(), zero_point
