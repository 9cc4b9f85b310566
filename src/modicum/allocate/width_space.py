"""Choices of heads and neurons at one size of the model, and how to vary them.

A candidate has one mask per unit (the heads, or the neurons, of a block). How many groups a mask keeps is drawn; which
ones follows from their importance at first and is mutated later. Counts are drawn freely and then moved together, by
the same number of neurons in every block, until the candidate has the size that is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modicum.models.surgery import Cuttable

Candidate = tuple[Tensor, ...]
"""One mask per unit, bool [groups], True for what stays."""

HALVINGS = 30  # of the interval in which the common change of all counts lies


@dataclass(frozen=True)
class WidthSpace:
    """Masks of one size.

    Args:
        units: what they are over.
        importance: of the groups of each unit, [groups]; more stays.
        fewest: groups of each unit that stay at least.
        size: parameters of all units together that a candidate may have at most.
        tolerance: how far below that it may stay, as a fraction.
        rate: probability with which a mutation touches a unit, separately in its count and in its mask.
        swap: fraction of a mask that a mutation swaps.
        overlap: fraction of a mask that a mutation must leave.
    """

    units: Sequence[Cuttable]
    importance: Sequence[Tensor]
    fewest: Sequence[int]
    size: float
    tolerance: float = 0.01
    rate: float = 0.2
    swap: float = 0.1
    overlap: float = 0.8

    def random(self, generator: torch.Generator) -> Candidate:
        """Counts drawn evenly, and the most important groups."""
        return self.sized([self._count(index, generator) for index in range(len(self.units))])

    def sized(self, counts: Sequence[int]) -> Candidate:
        """The most important groups, about as many of each unit as `counts` says, in a candidate of the size."""
        return self._fitted([most_important(i, n) for i, n in zip(self.importance, counts, strict=True)])

    def mutated(self, parent: Candidate, generator: torch.Generator) -> Candidate:
        """Some counts drawn anew, some masks with a few groups swapped."""
        masks = list(parent)
        for index, touched in enumerate(_chances(len(masks), self.rate, generator)):
            if touched:
                count = self._count(index, generator)
                masks[index] = resized(masks[index], count, self.importance[index])
        for index, touched in enumerate(_chances(len(masks), self.rate, generator)):
            if touched:
                masks[index] = swapped(masks[index], self.swap, self.overlap, generator)
        return self._fitted(masks)

    def crossed(self, one: Candidate, other: Candidate, generator: torch.Generator) -> Candidate:
        """Every mask from either parent."""
        chosen = _chances(len(one), 0.5, generator)
        return self._fitted([a if first else b for a, b, first in zip(one, other, chosen, strict=True)])

    def legal(self, candidate: Candidate) -> bool:
        """Whether it has the size, and every unit enough groups."""
        counts = [int(mask.sum()) for mask in candidate]
        enough = all(count >= least for count, least in zip(counts, self.fewest, strict=True))
        return enough and self.size * (1 - self.tolerance) <= self._size(counts) <= self.size

    def _size(self, counts: Sequence[int]) -> int:
        return sum(count * unit.size for count, unit in zip(counts, self.units, strict=True))

    def _count(self, index: int, generator: torch.Generator) -> int:
        return int(torch.randint(self.fewest[index], self.units[index].count + 1, (1,), generator=generator))

    def _fitted(self, masks: Sequence[Tensor]) -> Candidate:
        """The masks with their neurons grown or shrunk by a common number, so that the size is met from below."""
        counts = [int(mask.sum()) for mask in masks]
        high = float(max(unit.count for unit in self.units))
        low = -high
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if self._size(self._moved(counts, middle)) <= self.size:
                low = middle
            else:
                high = middle
        moved = self._moved(counts, low)
        return tuple(resized(m, n, i) for m, n, i in zip(masks, moved, self.importance, strict=True))

    def _moved(self, counts: Sequence[int], by: float) -> list[int]:
        return [
            min(max(int(count + by), least), unit.count) if unit.kind == "neurons" else count
            for count, least, unit in zip(counts, self.fewest, self.units, strict=True)
        ]


def most_important(importance: Tensor, count: int) -> Tensor:
    """A mask of the `count` groups of the highest importance, bool [groups]."""
    mask = torch.zeros(len(importance), dtype=torch.bool)
    mask[importance.argsort(stable=True)[len(importance) - count :].cpu()] = True
    return mask


def resized(mask: Tensor, count: int, importance: Tensor) -> Tensor:
    """A mask of `count` groups: the least important ones leave, or the most important absent ones come."""
    importance = importance.cpu()
    if count <= int(mask.sum()):
        return most_important(importance.masked_fill(~mask, -torch.inf), count)
    return most_important(importance.masked_fill(mask, torch.inf), count)


def swapped(mask: Tensor, share: float, overlap: float, generator: torch.Generator) -> Tensor:
    """As many groups, some of them others; unchanged if less than `overlap` of them would stay."""
    inside, outside = mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]
    many = max(1, int(share * min(len(inside), len(outside))))
    if not len(outside) or 1 - many / len(inside) < overlap:
        return mask
    changed = mask.clone()
    changed[inside[torch.randperm(len(inside), generator=generator)[:many]]] = False
    changed[outside[torch.randperm(len(outside), generator=generator)[:many]]] = True
    return changed


def key(candidate: Candidate) -> str:
    """The same for equal masks, and for those alone."""
    return hashlib.sha256(b"|".join(bytes(mask.tolist()) for mask in candidate)).hexdigest()[:32]


def _chances(count: int, probability: float, generator: torch.Generator) -> list[bool]:
    drawn: list[bool] = (torch.rand(count, generator=generator) < probability).tolist()
    return drawn
