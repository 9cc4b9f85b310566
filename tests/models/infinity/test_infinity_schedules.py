from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modicum.errors import InvalidSetting
from modicum.models.infinity.schedules import MAPS, TABLE, Resolution

RATIOS = [1.0, 1.25, 1.333, 1.5, 1.75, 2.0, 2.5, 3.0, 0.8, 0.75, 0.666, 0.571, 0.5, 0.4, 0.333]


def test_published_ratios() -> None:
    assert sorted(TABLE) == sorted(RATIOS)


def test_published_tokens_of_the_square() -> None:
    schedule = Resolution.of(1.0).schedule
    assert list(schedule.offsets[1:]) == [1, 5, 21, 57, 121, 265, 521, 921, 1497, 2521, 4121, 6425, 10521]
    finals = {pixels: Resolution.of(1.0, pixels).schedule.final for pixels in MAPS}  # type: ignore[arg-type]
    assert finals == {"0.06M": (16, 16), "0.25M": (32, 32), "0.60M": (48, 48), "1M": (64, 64)}


@pytest.mark.parametrize("ratio", TABLE)
def test_what_the_maps_of_every_ratio_share(ratio: float) -> None:
    for pixels, maps in MAPS.items():
        found = Resolution.of(ratio, pixels, exact=True)  # type: ignore[arg-type]
        sizes = found.schedule.sizes
        assert len(sizes) == maps
        assert found.frame == TABLE[ratio][-1]
        assert sizes[:2] == ((1, 1), (2, 2))
        assert all(a <= c and b <= d for (a, b), (c, d) in pairwise(sizes))
        assert sizes[-1][0] / sizes[-1][1] == pytest.approx(ratio, abs=0.01)
        area = 256 * found.schedule.tokens[-1]
        assert area == pytest.approx(
            {"0.06M": 2**16, "0.25M": 2**18, "0.60M": 768**2, "1M": 2**20}[pixels], rel=0.27
        )


@pytest.mark.parametrize(("tall", "wide"), [(1.25, 0.8), (1.5, 0.666), (1.75, 0.571), (3.0, 0.333)])
def test_wide_is_tall_turned_over(tall: float, wide: float) -> None:
    assert TABLE[wide] == tuple((width, height) for height, width in TABLE[tall])


@given(st.floats(0.01, 100))
def test_the_nearest_ratio_is_taken(ratio: float) -> None:
    found = Resolution.of(ratio)
    taken = next(known for known, sizes in TABLE.items() if sizes == found.schedule.sizes)
    assert all(abs(taken - ratio) <= abs(known - ratio) for known in TABLE)


def test_exact_ratios() -> None:
    assert Resolution.of(1.5, exact=True) == Resolution.of(1.55)
    with pytest.raises(InvalidSetting, match=r"The nearest ratio is 1\.5; all are 0\.333, 0\.4"):
        Resolution.of(1.55, exact=True)


def test_a_prefix_keeps_the_frame() -> None:
    short = Resolution.of(1.5).prefix(4)
    assert short.schedule.sizes == ((1, 1), (2, 2), (3, 2), (6, 4))
    assert short.frame == (78, 52)


@pytest.mark.parametrize(
    ("ratio", "pixels"), [(0, "1M"), (-1, "1M"), (float("nan"), "1M"), (1, "2M"), (1, 7)]
)
def test_no_such_image(ratio: float, pixels: str) -> None:
    with pytest.raises(InvalidSetting):
        Resolution.of(ratio, pixels)  # type: ignore[arg-type]
