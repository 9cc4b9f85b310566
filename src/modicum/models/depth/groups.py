"""Groups of consecutive blocks, N of M of which stay: [[N1, M1], [N2, M2], ...], the M adding up to the depth.

    depth 6, "1:2"   ->  blocks 0 1 | 2 3 | 4 5, one of each two stays

In a model of several stacks (encoder and decoder) a group lies within one of them.

A group's candidates are the C(M, N) ways to keep N of its M blocks, as 0/1 rows in lexicographic order of the kept
indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, combinations
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator
from torch import Tensor

from modicum.errors import InvalidSetting

Groups = tuple[tuple[int, int], ...]


def _parsed(value: Any) -> Any:
    """One pattern stays a text; a list of patterns, also a text with commas, becomes pairs."""
    if isinstance(value, str) and "," not in value:
        _pair(value)
        return value
    if isinstance(value, str):
        value = value.split(",")
    if isinstance(value, Sequence) and value:
        return tuple(_pair(part) for part in value)
    raise ValueError("give a pattern such as 1:2, or a list such as [[1, 2], [2, 3]]")


def _pair(part: Any) -> tuple[int, int]:
    """(N, M) of "N:M" or [N, M].

    Raises:
        ValueError: not two whole numbers with 1 <= N <= M.
    """
    pieces = part.split(":") if isinstance(part, str) else part
    try:
        keep, of = (int(piece) for piece in pieces)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{part!r} is not a pattern N:M") from error
    if not 1 <= keep <= of:
        raise ValueError(f"{keep}:{of} keeps {keep} of {of} blocks; N must lie between 1 and M")
    return keep, of


GroupSetting = Annotated[str | Groups, BeforeValidator(_parsed)]
"""A setting: "1:2" for the whole stack, or one pair per group."""


def as_groups(setting: str | Groups, *depths: int) -> Groups:
    """The groups of a model; a single pattern is repeated.

    Args:
        setting: one pattern for all, or one pair per group.
        depths: blocks of each stack; one number for a model whose blocks are one stack.

    Raises:
        InvalidSetting: the groups do not add up to the depth, or one of them reaches over the end of a stack.
    """
    if isinstance(setting, str):
        keep, of = _pair(setting)
        groups: Groups = tuple((keep, of) for depth in depths for _ in range(depth // of))
    else:
        groups = setting
    covered = sum(of for _, of in groups)
    if covered != sum(depths):
        raise InvalidSetting(
            f"The groups {setting} cover {covered} blocks; the model has {' + '.join(map(str, depths))}.",
            "The second numbers must add up to the number of blocks.",
        )
    ends = set(accumulate(of for _, of in groups))
    torn = [end for end in accumulate(depths) if end not in ends]
    if torn:
        raise InvalidSetting(
            f"A group of {setting} reaches over block {torn[0]}, where another stack of the model begins.",
            f"Let groups end with the stacks, which have {' and '.join(map(str, depths))} blocks.",
        )
    return groups


def candidates(keep: int, of: int) -> Tensor:
    """All ways to keep `keep` of `of` blocks: float32 0/1 `[C(of, keep), of]`."""
    kept = torch.tensor(list(combinations(range(of), keep)))  # [C, keep]
    return torch.zeros(len(kept), of).scatter_(1, kept, 1.0)


def spans(groups: Groups) -> list[range]:
    """The indices of the blocks of each group."""
    ends = list(accumulate(of for _, of in groups))
    return [range(end - of, end) for end, (_, of) in zip(ends, groups, strict=True)]


def last_of_groups(kept: Sequence[int], groups: Groups) -> list[tuple[int, int]]:
    """For each group, its last kept block (as an index among the kept) and its last block of all.

    What leaves these two should be alike: this is where a pruned model is held against the whole one.

    Args:
        kept: ascending indices of the blocks that stay, `keep` in every group.
        groups: of the whole stack.
    """
    ends = accumulate(sum(block in span for block in kept) for span in spans(groups))
    return [(end - 1, span[-1]) for end, span in zip(ends, spans(groups), strict=True)]
