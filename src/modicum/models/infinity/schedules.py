"""The token maps of every aspect ratio that Infinity was trained on.

Each ratio has thirteen maps that end at about a million pixels; smaller images are drawn with the first seven, ten
or twelve of them. Wide ratios are the tall ones turned over. Whatever the number of maps, a ratio has one frame of
coordinates, the last of its thirteen maps: rotary positions of all maps are spread over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from modicum.errors import InvalidSetting
from modicum.models.next_scale import Schedule

Pixels = Literal["0.06M", "0.25M", "0.60M", "1M"]
Sizes = tuple[tuple[int, int], ...]

MAPS: dict[str, int] = dict(zip(get_args(Pixels), (7, 10, 12, 13), strict=True))

# height / width -> (heights, widths) of the thirteen maps
_TALL: dict[float, tuple[Sequence[int], Sequence[int]]] = {
    1.0: (
        (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64),
        (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64),
    ),
    1.25: (
        (1, 2, 3, 5, 10, 15, 20, 25, 30, 35, 45, 55, 70),
        (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 36, 44, 56),
    ),
    1.333: (
        (1, 2, 4, 8, 12, 16, 20, 24, 28, 36, 48, 60, 72),
        (1, 2, 3, 6, 9, 12, 15, 18, 21, 27, 36, 45, 54),
    ),
    1.5: (
        (1, 2, 3, 6, 9, 15, 21, 27, 33, 39, 48, 63, 78),
        (1, 2, 2, 4, 6, 10, 14, 18, 22, 26, 32, 42, 52),
    ),
    1.75: (
        (1, 2, 3, 7, 11, 14, 21, 28, 35, 42, 56, 70, 84),
        (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48),
    ),
    2.0: (
        (1, 2, 4, 6, 10, 16, 22, 30, 38, 46, 60, 74, 90),
        (1, 2, 2, 3, 5, 8, 11, 15, 19, 23, 30, 37, 45),
    ),
    2.5: (
        (1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 65, 80, 100),
        (1, 2, 2, 4, 6, 8, 10, 12, 16, 20, 26, 32, 40),
    ),
    3.0: (
        (1, 2, 6, 9, 15, 21, 27, 36, 45, 54, 72, 90, 111),
        (1, 2, 2, 3, 5, 7, 9, 12, 15, 18, 24, 30, 37),
    ),
}


def _both_ways() -> dict[float, Sizes]:
    table: dict[float, Sizes] = {}
    for ratio, (longer, shorter) in _TALL.items():
        table[ratio] = tuple(zip(longer, shorter, strict=True))
        if ratio > 1:
            table[int(1000 / ratio) / 1000] = tuple(zip(shorter, longer, strict=True))
    return table


# height / width -> (height, width) of the thirteen maps
TABLE: dict[float, Sizes] = _both_ways()


@dataclass(frozen=True)
class Resolution:
    """What an image consists of.

    Attributes:
        schedule: its token maps.
        frame: (height, width) of the grid over which the rotary positions of every map are spread.
    """

    schedule: Schedule
    frame: tuple[int, int]

    @classmethod
    def of(cls, ratio: float = 1.0, pixels: Pixels = "1M", *, exact: bool = False) -> Resolution:
        """The published maps of an aspect ratio.

        Args:
            ratio: height / width; the nearest published one is taken.
            pixels: how many in all.
            exact: refuse to take another ratio than the one that was asked for.

        Raises:
            InvalidSetting: a ratio that is not positive, or not published if `exact`; unknown `pixels`.
        """
        if pixels not in MAPS:
            raise InvalidSetting(
                f"There are no images of {pixels!r} pixels.", f"Choose among {', '.join(MAPS)}."
            )
        if not ratio > 0:
            raise InvalidSetting(
                f"{ratio} is not the ratio of two sides.", "Give height / width, such as 1.5."
            )
        nearest = min(TABLE, key=lambda known: abs(known - ratio))
        if exact and nearest != ratio:
            raise InvalidSetting(
                f"There are no token maps for images of height / width {ratio}.",
                f"The nearest ratio is {nearest}; all are {', '.join(map(str, sorted(TABLE)))}.",
            )
        return cls(Schedule(TABLE[nearest]).prefix(MAPS[pixels]), TABLE[nearest][-1])

    def prefix(self, maps: int) -> Resolution:
        """The first maps alone, in the same frame."""
        return Resolution(self.schedule.prefix(maps), self.frame)
