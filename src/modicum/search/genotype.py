"""What a search breeds: candidates of one kind, and the space that they are drawn from.

The engine (evolution, loop, log, workers) knows no more of a candidate than this; formulas (`Trees`) and sparsities per
block (`Shares`) are two kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Generic, Protocol, TypeVar


class Genotype(Protocol):
    """A candidate; as text it is the genome, which workers and the log are given."""

    @property
    def digest(self) -> str:
        """SHA-256 of the genome."""

    @property
    def size(self) -> int:
        """How many parts it has."""


G = TypeVar("G", bound=Genotype)


@dataclass(frozen=True)
class Variation(Generic[G]):
    """One way to make a child.

    Attributes:
        make: from two parents to a child, given their space; may raise InvalidSetting where parts do not fit.
        share: how often it is chosen, relative to the others.
        parents: how many it reads.
    """

    make: Callable[[G, G, Any, Random], G]
    share: float
    parents: int = 1


class Space(Protocol[G]):
    """Which candidates there are, and which do the same."""

    @property
    def variations(self) -> Mapping[str, Variation[G]]:
        """How children are made, by name."""

    def random(self, generator: Random) -> tuple[G, str]:
        """Any candidate, and how it was made."""

    def normal(self, genotype: G) -> G:
        """The one form of all spellings of a candidate; what breeding made may be repaired here."""

    def fits(self, genotype: G) -> bool:
        """Whether a candidate is within its limits; asked before anything is computed."""

    def identity(self, genotype: G) -> str | None:
        """What a candidate has in common with all that do the same; None if it is not valid."""
