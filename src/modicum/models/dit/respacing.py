"""Which of the 1000 steps of a diffusion are taken.

"250"      so many, spread evenly from the first to the last
"10,20"    so many of each equal section
"ddim50"   every n-th from the first, with the whole n that leaves 50
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from modicum.errors import InvalidSetting

STEPS = 1000


@functools.lru_cache(maxsize=32)
def kept_steps(steps: str) -> Tensor:
    """Which of the 1000 steps are kept, int64 ascending; "" keeps all.

    Raises:
        InvalidSetting: not of one of the forms, or more steps than there are.
    """
    try:
        if steps.startswith("ddim"):
            return _strided(int(steps.removeprefix("ddim")))
        counts = [int(count) for count in steps.split(",")] if steps else [STEPS]
        return torch.cat(_sections(counts))
    except ValueError as error:
        raise InvalidSetting(
            f"{steps!r} steps cannot be taken out of {STEPS}: {error}.",
            "Give a number such as '250', numbers per section such as '10,15', or 'ddim50'.",
        ) from error


def _strided(count: int) -> Tensor:
    for stride in range(1, STEPS):
        if len(range(0, STEPS, stride)) == count:
            return torch.arange(0, STEPS, stride)
    raise ValueError(f"no whole stride leaves {count}")


def _sections(counts: list[int]) -> list[Tensor]:
    """Each section's steps, from its first to its last; sizes differ by at most one."""
    base, longer = divmod(STEPS, len(counts))
    sizes = [base + (index < longer) for index in range(len(counts))]
    if any(not 0 < count <= size for count, size in zip(counts, sizes, strict=True)):
        raise ValueError(f"sections hold {sizes} steps")
    starts = np.cumsum([0, *sizes[:-1]])
    return [
        torch.from_numpy(start + _spread(count, size))
        for start, count, size in zip(starts, counts, sizes, strict=True)
    ]


def _spread(count: int, size: int) -> np.ndarray:
    """`count` indices from 0 to `size - 1`. The stride is added up, as published, rather than multiplied."""
    stride = (size - 1) / (count - 1) if count > 1 else 1.0
    return np.rint(np.cumsum(np.r_[0.0, np.full(count - 1, stride)])).astype(np.int64)
