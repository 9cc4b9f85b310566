"""One sparsity for every block at a fixed mean: which there are, random ones, and how they are bred.

Sparsities lie on a grid around the uniform one, s + k STEP with whole k, and the mean over all weights is s. Where
blocks differ in size, no grid meets the mean exactly; then what is missing, less than half a step, is added to all.

    move     some steps go from one block to another
    shake    every block may go up or down by a step
    cross    every block is that of either parent

What shaking and crossing do to the mean is undone by steps of blocks drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from random import Random

from modicum.search.genotype import Variation

STEP = 0.025
MOST = 0.95  # of a block; beyond it hardly a layer is of use
FARTHEST = 3  # steps that a move takes at most
WIDEST = 3.0  # steps: the largest deviation of random sparsities


@dataclass(frozen=True)
class Shares:
    """A sparsity per block, in the order of the blocks."""

    values: tuple[float, ...]

    @classmethod
    def read(cls, genome: str) -> Shares:
        """What `str` wrote."""
        return cls(tuple(map(float, genome.split())))

    def __str__(self) -> str:
        return " ".join(f"{value:g}" for value in self.values)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the genome."""
        return sha256(str(self).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Number of blocks."""
        return len(self.values)


@dataclass(frozen=True)
class SharesSpace:
    """All sparsities of the blocks of one model.

    Attributes:
        sizes: weights of each block that are pruned.
        sparsity: the mean, over all weights.
    """

    sizes: tuple[int, ...]
    sparsity: float

    @property
    def variations(self) -> Mapping[str, Variation[Shares]]:
        """How sparsities are bred."""
        return MOVES

    @cached_property
    def bounds(self) -> tuple[int, int]:
        """The fewest and the most steps from the mean."""
        shift = 0.0 if len(set(self.sizes)) == 1 else STEP / 2
        tiny = 1e-9
        low = math.ceil((shift - self.sparsity) / STEP - tiny)
        return min(low, 0), max(math.floor((MOST - shift - self.sparsity) / STEP + tiny), 0)

    def uniform(self) -> Shares:
        """The same for every block."""
        return self._of([0] * len(self.sizes))

    def nearest(self, values: Sequence[float], generator: Random) -> Shares:
        """The sparsities on the grid next to others, brought back to the mean."""
        return self.levelled([round((value - self.sparsity) / STEP) for value in values], generator)

    def random(self, generator: Random) -> tuple[Shares, str]:
        """Sparsities around the mean, more or less wide."""
        width = generator.uniform(0.5, WIDEST)
        return self.levelled([round(generator.gauss(0, width)) for _ in self.sizes], generator), "random"

    def steps(self, shares: Shares) -> list[int]:
        """How many steps each block is above the mean."""
        return [round((value - self.sparsity) / STEP) for value in shares.values]

    def levelled(self, steps: Sequence[int], generator: Random) -> Shares:
        """Sparsities within the bounds whose mean is right, a step at a time, blocks drawn at random."""
        low, high = self.bounds
        steps = [min(max(k, low), high) for k in steps]
        while able := self._helpful(steps):
            place, way = generator.choice(able)
            steps[place] += way
        return self._of(steps)

    def normal(self, shares: Shares) -> Shares:
        """There is one spelling."""
        return shares

    def fits(self, shares: Shares) -> bool:
        """All that is made here does."""
        return True

    def identity(self, shares: Shares) -> str:
        """The sparsities themselves."""
        return shares.digest

    def _helpful(self, steps: Sequence[int]) -> list[tuple[int, int]]:
        """Blocks of which a step up or down brings the mean nearer, with that step."""
        low, high = self.bounds
        excess = self._excess(steps)
        way = -1 if excess > 0 else 1
        return [
            (place, way)
            for place, (k, size) in enumerate(zip(steps, self.sizes, strict=True))
            if low <= k + way <= high and abs(excess + way * size) < abs(excess)
        ]

    def _excess(self, steps: Sequence[int]) -> int:
        return sum(k * size for k, size in zip(steps, self.sizes, strict=True))

    def _of(self, steps: Sequence[int]) -> Shares:
        shift = STEP * self._excess(steps) / sum(self.sizes)
        return Shares(tuple(round(self.sparsity + STEP * k - shift, 6) for k in steps))


def move(first: Shares, second: Shares, space: SharesSpace, generator: Random) -> Shares:
    """Some steps go from one block to another."""
    steps = space.steps(first)
    if len(steps) > 1:
        giver, taker = generator.sample(range(len(steps)), 2)
        far = generator.randint(1, FARTHEST)
        steps[giver] -= far
        steps[taker] += far
    return space.levelled(steps, generator)


def shake(first: Shares, second: Shares, space: SharesSpace, generator: Random) -> Shares:
    """Every block goes up, down, or stays."""
    return space.levelled([k + generator.choice((-1, 0, 1)) for k in space.steps(first)], generator)


def cross(first: Shares, second: Shares, space: SharesSpace, generator: Random) -> Shares:
    """Every block of either parent."""
    pairs = zip(space.steps(first), space.steps(second), strict=True)
    return space.levelled([generator.choice(pair) for pair in pairs], generator)


MOVES: Mapping[str, Variation[Shares]] = {
    "move": Variation(move, 0.4),
    "shake": Variation(shake, 0.2),
    "cross": Variation(cross, 0.4, parents=2),
}
"""Crossing makes two of five children, moves as many."""
