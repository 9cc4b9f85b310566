"""How many heads and neurons each block loses, if a given number of parameters is to go.

Groups have different sizes: a head weighs as much as dozens of neurons. So a budget counts parameters. It is met from
below, up to less than one neuron (or one head, where heads alone are cut) per block or model.

    even          every block loses the same share of its parameters
    lowest        the groups of the lowest scores go, wherever they are

Every kind of group keeps at least one in every block: without heads or without neurons a block would be another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor

from modicum.errors import InvalidSetting
from modicum.models.surgery import Cuttable

Kept = dict[Cuttable, Tensor]
"""Ascending indices of the groups that stay, int64."""


def parameters(units: Sequence[Cuttable]) -> int:
    """Parameters of all groups together."""
    return sum(unit.count * unit.size for unit in units)


def even(units: Sequence[Cuttable], budget: float) -> dict[Cuttable, int]:
    """How many groups each unit loses if every block gives the same share of its parameters.

    Args:
        units: neighbours that belong to one block share its part: the larger groups are rounded first, the smaller
            ones make up for it.
        budget: parameters that go.

    Raises:
        InvalidSetting: these blocks do not have so many to give.
    """
    share = budget / parameters(units)
    gone: dict[Cuttable, int] = {}
    for _, block in groupby(units, key=lambda unit: unit.block):
        coarse_first = sorted(block, key=lambda unit: unit.size, reverse=True)
        left = share * parameters(coarse_first)
        for unit in coarse_first[:-1]:
            gone[unit] = min(round(share * unit.count), unit.count - 1)
            left -= gone[unit] * unit.size
        last = coarse_first[-1]
        gone[last] = max(0, int(left / last.size + 1e-9))
        if gone[last] >= last.count:
            raise InvalidSetting(
                f"{share:.0%} of block {last.block} is more than it can lose: it keeps one of its {last.kind}.",
                "Lower the ratio, or let more blocks or more kinds of groups take part.",
            )
    return gone


def lowest_of_each(scores: Mapping[Cuttable, Tensor], gone: Mapping[Cuttable, int]) -> Kept:
    """What stays if every unit loses a given number of groups, those of the lowest scores [groups]."""
    return {
        unit: score.argsort(stable=True)[gone.get(unit, 0) :].sort().values for unit, score in scores.items()
    }


def lowest(scores: Mapping[Cuttable, Tensor], budget: float) -> Kept:
    """What stays if the lowest scores [groups] of all units go until `budget` parameters are gone.

    The highest of every unit stays. Where the next group is larger than what is left of the budget, smaller ones
    that come later fill it.

    Raises:
        InvalidSetting: the groups that may go have fewer parameters.
    """
    every = torch.cat([score.double().cpu() for score in scores.values()])
    sizes = torch.cat([torch.full((unit.count,), float(unit.size)) for unit in scores]).double()
    last = torch.cat([_highest(score.cpu()) for score in scores.values()])
    if float(sizes[~last].sum()) < budget:
        raise InvalidSetting(
            f"{budget:.0f} parameters cannot go: each block keeps a head and a neuron.", "Lower the ratio."
        )
    gone = torch.zeros_like(last)
    for limit in sorted({unit.size for unit in scores}, reverse=True):
        free = ~gone & ~last & (sizes <= limit)
        order = every.masked_fill(~free, torch.inf).argsort(stable=True)[: int(free.sum())]
        left = budget - float(sizes[gone].sum())
        gone[order[sizes[order].cumsum(0) <= left]] = True
    parts = gone.split([unit.count for unit in scores])
    return {
        unit: (~part).nonzero()[:, 0].to(unit.reader.members.device)
        for unit, part in zip(scores, parts, strict=True)
    }


def _highest(score: Tensor) -> Tensor:
    """True at the (last) highest score."""
    found = torch.zeros(len(score), dtype=torch.bool)
    found[score.argsort(stable=True)[-1]] = True
    return found
