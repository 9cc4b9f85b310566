"""Blocks by name: keep exactly those whose indices are given, whoever chose them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from modicum.method import Context, Paper
from modicum.models import Anatomy
from modicum.models.depth import check_kept, split
from modicum.prune.depth import DepthMethod


class Blocks(DepthMethod):
    """Keep the blocks with the given indices and remove all others."""

    paper: ClassVar[Paper] = Paper("Explicit choice of blocks", "baseline")

    keep: tuple[int, ...] = Field((0,), min_length=1, description="ascending indices of the blocks that stay")

    def blocks_kept(self, stacks: Sequence[int]) -> tuple[int, ...]:
        """As many as are named."""
        check_kept(self.keep, sum(stacks))
        return tuple(map(len, split(self.keep, stacks)))

    def choose(self, anatomy: Anatomy, context: Context) -> tuple[Sequence[int], dict[str, Any]]:
        """The given indices."""
        return self.keep, {}
