"""Which weights a column sweep prunes: unstructured, N:M or a given mask.

A selector is asked when the sweep reaches the first column of a span, so it judges weights that already
carry the corrections of everything before them. Scores are w^2 / U_cc^2, the output error of removing one
weight and correcting the later ones for it (SparseGPT, arXiv 2301.00774).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from modicum.errors import InvalidSetting
from modicum.kernels.selection import prune_lowest, prune_lowest_global


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
