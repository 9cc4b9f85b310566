"""Which weights a column sweep prunes: unstructured, whole blocks, N:M or a given mask.

A selector is asked when the sweep reaches the first column of a span, so it judges weights that already
carry the corrections of everything before them. Scores are w^2 / U_cc^2, the output error of removing one
weight and correcting the later ones for it (SparseGPT, arXiv 2301.00774), or, where a group is small, the error of
removing a whole set at once (APT, arXiv 2410.15567).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from math import comb
from typing import Protocol

import torch
from torch import Tensor

from modicum.errors import InvalidSetting
from modicum.kernels.selection import lowest_blocks, prune_lowest, prune_lowest_global


class Selector(Protocol):
    """Decides, `span` columns at a time, which weights are pruned, given the weights as corrected so far."""

    def span(self, in_features: int) -> int:
        """Columns that are decided together, when the sweep reaches the first of them."""
        ...

    def choose(self, columns: Tensor, diagonal: Tensor, start: int) -> Tensor:
        """bool [cols, out], True = pruned, from current weights [cols, out] and diagonal U_cc [cols]."""
        ...


@dataclass(frozen=True)
class Unstructured:
    """In every block of columns prune int(sparsity * entries) weights over all rows, by w^2 / U_cc^2."""

    sparsity: float
    block: int = 128

    def span(self, in_features: int) -> int:
        """The block, or the whole row if that is shorter."""
        return min(self.block, in_features)

    def choose(self, columns: Tensor, diagonal: Tensor, start: int) -> Tensor:
        """The lowest scores of the block, an exact number of them."""
        return prune_lowest_global(_scores(columns, diagonal), int(self.sparsity * columns.numel()))


@dataclass(frozen=True)
class BlockStructured:
    """Prune whole aligned blocks of `rows` outputs by `columns` inputs, by the sum of w^2 / U_cc^2 over the block.

    The blocks of a span compete. Whatever the span, int(sparsity * blocks) of all blocks go in the end.

    Args:
        sparsity: the fraction of the blocks that go.
        rows: of a block; they divide the outputs.
        columns: of a block; they divide the inputs.
        block: columns that are decided together, rounded to whole blocks.
    """

    sparsity: float
    rows: int
    columns: int
    block: int = 128

    def span(self, in_features: int) -> int:
        """As many whole blocks as fit into `block` columns, one at least."""
        return min(max(1, self.block // self.columns) * self.columns, in_features)

    def choose(self, columns: Tensor, diagonal: Tensor, start: int) -> Tensor:
        """The blocks of the lowest sums."""
        scores = _scores(columns, diagonal)
        sums = scores.unflatten(0, (-1, self.columns)).sum(1).unflatten(1, (-1, self.rows)).sum(2)
        before = start // self.columns * sums.shape[1]  # blocks that are decided already
        due = int(self.sparsity * (before + sums.numel())) - int(self.sparsity * before)
        return lowest_blocks(sums, due, self.columns, self.rows)


@dataclass(frozen=True)
class SemiStructured:
    """In every aligned group of `m` columns of a row keep `n_kept` weights, by w^2 / U_cc^2."""

    n_kept: int
    m: int

    def span(self, in_features: int) -> int:
        """One group.

        Raises:
            InvalidSetting: the row does not consist of whole groups.
        """
        if in_features % self.m:
            raise InvalidSetting(
                f"{in_features} inputs are not a multiple of {self.m}: no {self.n_kept}:{self.m} pattern.",
                "Leave this layer out, or choose an unstructured sparsity.",
            )
        return self.m

    def choose(self, columns: Tensor, diagonal: Tensor, start: int) -> Tensor:
        """The m - n_kept lowest scores of every row."""
        return prune_lowest(_scores(columns, diagonal).T, self.m - self.n_kept).T


CANDIDATES = 1000
"""Sets per group that are compared one by one; above, weights are judged alone."""


@dataclass(eq=False)
class JointSemiStructured:
    """In every aligned group of `m` columns remove the m - n_kept weights of a row whose joint removal costs least.

    The error of removing the set p of a group and correcting all later columns is w_p [(H^-1)_pp]^-1 w_p^T / 2, H being
    the Gram matrix of the columns from the group on. It depends on the row through w alone, so that the inverses of all
    C(m, n_kept) sets are taken once per group. Of equal sets the first in lexicographic order is removed. Above
    `CANDIDATES` sets, weights are judged alone.

    Args:
        n_kept: weights that stay in a group.
        m: columns of a group.
        factor: U of `inverse_cholesky`, [in, in].
    """

    n_kept: int
    m: int
    factor: Tensor
    sets: Tensor = field(init=False, repr=False)
    masks: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        chosen = list(combinations(range(self.m), self.m - self.n_kept)) if self.joint else []
        self.sets = torch.tensor(chosen, dtype=torch.long, device=self.factor.device)  # [C, k]
        places = torch.arange(self.m, device=self.factor.device)
        self.masks = (self.sets.unsqueeze(-1) == places).any(1)  # [C, m]

    @property
    def joint(self) -> bool:
        """Whether sets are few enough to be compared."""
        return comb(self.m, self.n_kept) <= CANDIDATES

    def span(self, in_features: int) -> int:
        """One group.

        Raises:
            InvalidSetting: the row does not consist of whole groups.
        """
        return SemiStructured(self.n_kept, self.m).span(in_features)

    def choose(self, columns: Tensor, diagonal: Tensor, start: int) -> Tensor:
        """The cheapest set of every row."""
        if not self.joint:
            return SemiStructured(self.n_kept, self.m).choose(columns, diagonal, start)
        # the first of equal ones, as argmin, which takes ten times as long along this axis
        best = self._losses(columns, start).min(0).indices  # [out]
        return self.masks[best].T

    def _losses(self, columns: Tensor, start: int) -> Tensor:
        """w_p [(H^-1)_pp]^-1 w_p^T of every set and row, `[C, out]`."""
        group = self.factor[start : start + self.m, start : start + self.m]
        inverse = (group.T @ group).double()  # (H^-1) of the group and all that follows
        blocks = inverse[self.sets[:, :, None], self.sets[:, None]]  # [C, k, k]
        weights = columns[self.sets]  # [C, k, out]
        return (torch.linalg.inv(blocks).to(weights.dtype) @ weights).mul_(weights).sum(1)


@dataclass(frozen=True, eq=False)
class Keeping:
    """Chooses like `own`, but what an earlier step set to zero goes first and always."""

    own: Selector
    zeros: Tensor  # bool [out, in]

    def span(self, in_features: int) -> int:
        """That of `own`."""
        return self.own.span(in_features)

    def choose(self, columns: Tensor, diagonal: Tensor, start: int) -> Tensor:
        """What `own` chooses when zeros weigh nothing, and all zeros."""
        gone = self.zeros[:, start : start + columns.shape[0]].T  # [cols, out]
        return self.own.choose(columns.masked_fill(gone, 0), diagonal, start) | gone


@dataclass(frozen=True, eq=False)
class Fixed:
    """A mask that is given: bool [out, in], True = stays zero."""

    mask: Tensor

    def span(self, in_features: int) -> int:
        """Everything is decided at once."""
        return in_features

    def choose(self, columns: Tensor, diagonal: Tensor, start: int) -> Tensor:
        """The given mask."""
        return self.mask[:, start : start + columns.shape[0]].T


def _scores(columns: Tensor, diagonal: Tensor) -> Tensor:
    """w^2 / U_cc^2, the error of removing each weight alone: [cols, out]."""
    return (columns / diagonal.unsqueeze(-1)).square_()
