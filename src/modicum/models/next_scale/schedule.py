"""The list of token maps that make up one image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from modicum.errors import InvalidSetting


@dataclass(frozen=True)
class Schedule:
    """Sizes of the maps, first to last. Scales are counted from 0.

    Attributes:
        sizes: (height, width) of each map, in tokens.

    Raises:
        InvalidSetting: no map at all, or one without tokens.
    """

    sizes: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if not self.sizes or any(min(size) < 1 for size in self.sizes):
            raise InvalidSetting(
                f"{list(self.sizes)} is not a schedule of token maps.",
                "Give one (height, width) per map, all of them at least 1.",
            )

    @classmethod
    def square(cls, sides: Iterable[int]) -> Schedule:
        """A schedule of square maps."""
        return cls(tuple((side, side) for side in sides))

    @classmethod
    def of(cls, sizes: Sequence[Sequence[int]]) -> Schedule:
        """A schedule from any nested sequence of (height, width), as JSON gives it."""
        return cls(tuple((int(height), int(width)) for height, width in sizes))

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """Number of tokens of each map."""
        return tuple(height * width for height, width in self.sizes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Tokens before each map, and the total as last entry: map k is `offsets[k]:offsets[k + 1]`."""
        return (0, *accumulate(self.tokens))

    @property
    def total(self) -> int:
        """Tokens of all maps."""
        return self.offsets[-1]

    @property
    def final(self) -> tuple[int, int]:
        """(height, width) of the last map."""
        return self.sizes[-1]

    def span(self, scale: int) -> slice:
        """Where map `scale` lies in the sequence of all tokens."""
        return slice(self.offsets[scale], self.offsets[scale + 1])

    def progress(self, scale: int) -> float:
        """0 at the first map, 1 at the last; 0 if there is but one."""
        return scale / (len(self) - 1) if len(self) > 1 else 0.0

    def prefix(self, scales: int) -> Schedule:
        """The first `scales` maps."""
        return Schedule(self.sizes[:scales])

    def levels(self) -> Tensor:
        """Map of every token, int64 `[total]`."""
        return torch.cat([torch.full((count,), scale) for scale, count in enumerate(self.tokens)])

    def visible(self) -> Tensor:
        """Block-causal mask, bool `[total, total]`: query i sees key j where it is True."""
        levels = self.levels()
        return levels[:, None] >= levels[None, :]
