"""More cached tokens for the lower layers than for the higher ones, at equal total.

layer 0      ##################
layer 1      #############             an arithmetic sequence from high to low;
layer 2      ########                  all layers together hold what they would hold uniformly
layer 3      ###
"""

from __future__ import annotations

from modicum.allocate.cache_tokens import CacheBudget
from modicum.errors import InvalidSetting
from modicum.models.next_scale import Schedule


def pyramid(schedule: Schedule, layers: int, uniform: int, *, beta: int = 20, window: int = 1) -> CacheBudget:
    """PyramidKV's split of `uniform * layers` tokens at every map.

    With c = `uniform` - `window`, what a layer may keep beside its window, the last layer gets low = c // beta and
    the first high = 2 c - low, or what there is before map k if that is less (then low = 2 c - high). Maps that are
    preceded by at most `uniform` tokens carry all of them.

    Args:
        schedule: the maps.
        layers: of the model.
        uniform: tokens per row and head of every layer if all were equal.
        beta: how steep; 1 is flat.
        window: tokens that every layer keeps in any case.

    Raises:
        InvalidSetting: a budget below the window.
    """
    if uniform < window:
        raise InvalidSetting(
            f"A cache budget of {uniform} tokens is below the window of {window} that is always kept.",
            "Give a larger budget, or a smaller window.",
        )
    columns = [
        _steps(layers, uniform - window, prefix - window, beta, window)
        if prefix > uniform
        else [prefix] * layers
        for prefix in schedule.offsets[:-1]
    ]
    return CacheBudget.wanted(schedule, list(zip(*columns, strict=True)))


def _steps(layers: int, mean: int, most: int, beta: int, window: int) -> list[int]:
    """Tokens of every layer at one map; the upper half mirrors the lower one, so that the total is exact."""
    high = min(2 * mean - mean // beta, most)
    slope = 2 * (high - mean) / max(layers - 1, 1)
    lower = [round(high - layer * slope) for layer in range(layers // 2)]
    middle = [mean] * (layers % 2)
    return [
        window + tokens for tokens in (*lower, *middle, *(2 * mean - tokens for tokens in reversed(lower)))
    ]
