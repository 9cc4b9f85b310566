"""Oracle: every other block by a rule, as BK-SDM removes them.

The stack is cut into pairs. Of the pairs in its first half the first block stays, of those in the second half the
last: early on, the block that reads fresh features matters, later the one that writes them. For 28 blocks: 0, 2, ...,
12 and 15, 17, ..., 27. Of an odd number of pairs the middle one counts to the first half.

Kim et al., BK-SDM: A Lightweight, Fast, and Cheap Version of Stable Diffusion, ECCV 2024, arXiv 2305.15798; in this
form in TinyFusion, arXiv 2412.01199.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from modicum.errors import InvalidSetting
from modicum.method import Context, Paper
from modicum.models import Anatomy
from modicum.models.depth import split
from modicum.prune.depth import DepthMethod


class Oracle(DepthMethod):
    """Remove every other block by a fixed rule: the second of each early pair, the first of each late pair."""

    paper: ClassVar[Paper] = Paper(
        "BK-SDM: A Lightweight, Fast, and Cheap Version of Stable Diffusion", "ECCV 2024", "2305.15798"
    )

    def blocks_kept(self, stacks: Sequence[int]) -> tuple[int, ...]:
        """Half of them."""
        return tuple(map(len, split(self.indices(sum(stacks)), stacks)))

    def choose(self, anatomy: Anatomy, context: Context) -> tuple[Sequence[int], dict[str, Any]]:
        """One of each pair."""
        return self.indices(len(anatomy.blocks)), {}

    def indices(self, depth: int) -> list[int]:
        """The blocks of `depth` that stay.

        Raises:
            InvalidSetting: the depth is odd.
        """
        pairs, odd = divmod(depth, 2)
        if odd:
            raise InvalidSetting(
                f"{self.name} halves the depth, and the model has {depth} blocks.",
                "Name the blocks with prune.blocks.",
            )
        return [2 * pair + (pair >= (pairs + 1) // 2) for pair in range(pairs)]
