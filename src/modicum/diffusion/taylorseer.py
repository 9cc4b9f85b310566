"""TaylorSeer: extrapolate the branches to the steps between, instead of repeating them.

FORA repeats a branch as it was at the last full step, and falls behind as N grows. But branches move along smooth
paths; so keep their finite differences over the full steps and follow the polynomial, s steps after the last full one:

    d_0 = branch,   d_j = (d_j-1 - d_j-1 one full step before) / (steps between the two)
    branch after s steps = sum_j d_j s^j / j!          j = 0 .. O

O = 0 is FORA; O = 1 is exact for branches that are linear in the step. A difference of order j takes j + 1 full steps,
until then the polynomial is shorter. Kept are O + 1 tensors per branch. Liu et al., From Reusing to Forecasting:
Accelerating Diffusion Models with TaylorSeers, ICCV 2025, arXiv 2503.06923. Full steps are those of FORA.
"""

from __future__ import annotations

from math import factorial
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from modicum.diffusion.fora import BranchCache
from modicum.diffusion.step_cache import StepMethod
from modicum.method import Paper


class TaylorSeer(StepMethod):
    """Compute all branches every N-th step and extrapolate them in between, by finite differences up to order O.

    Branch s steps after a full one: sum_j d_j s^j / j!, d_j the j-th difference over the full steps, per step.
    """

    paper: ClassVar[Paper] = Paper(
        "From Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers",
        "ICCV 2025",
        "2503.06923",
    )

    interval: int = Field(3, ge=1, description="N: one step in N computes everything; 1 is the plain sampler")
    order: int = Field(3, ge=0, description="O: highest difference that is followed; 0 is FORA")

    def cache(self, passes: int) -> TaylorCache:
        """An empty cache for a generation of that many passes."""
        return TaylorCache(passes, self.interval, self.order)


class TaylorCache(BranchCache):
    """The differences of the branches over the last full passes.

    Args:
        passes: of the generation.
        interval: N.
        order: O.
    """

    def __init__(self, passes: int, interval: int, order: int) -> None:
        super().__init__(passes, interval)
        self.order = order

    def renewed(self, fresh: Tensor, before: list[Tensor]) -> list[Tensor]:
        """d_0 .. d_O, as far as there are full passes; each `[B, T, D]`."""
        differences = [fresh]
        for old in before[: self.order]:
            differences.append((differences[-1] - old) / self.since)
        return differences

    def recalled(self, kept: list[Tensor]) -> Tensor:
        """The polynomial at the present pass, `[B, T, D]`."""
        branch = kept[0]
        for j, difference in enumerate(kept[1:], start=1):
            branch = branch + difference * (self.since**j / factorial(j))
        return branch
