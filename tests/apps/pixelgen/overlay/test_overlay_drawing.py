from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modicum.apps.pixelgen.overlay import gauges, heat, mood, rings
from modicum.apps.pixelgen.overlay.sound import hue
from modicum.apps.pixelgen.readings import Readings

GREY = np.full((60, 80, 3), 0.4, np.float32)
MIDDLE = (0.5, 0.5)
anything = st.one_of(st.none(), st.floats(-1e6, 1e6), st.just(float("nan")))


def changed(drawn: np.ndarray) -> np.ndarray:
    return np.abs(drawn - GREY).sum(-1) > 0.05


def test_silence_draws_nothing() -> None:
    assert np.array_equal(rings(GREY, MIDDLE, 0.0, 440.0), GREY)


def test_louder_is_wider() -> None:
    areas = [changed(rings(GREY, MIDDLE, level, 440.0)).sum() for level in (15, 40, 65, 90)]
    assert areas == sorted(set(areas))


def test_rings_are_around_their_anchor() -> None:
    drawn = changed(rings(GREY, (0.2, 0.7), 60.0, 440.0))
    rows, columns = np.nonzero(drawn[25:])  # below the label
    assert abs(columns.mean() - 16) < 2
    assert abs(rows.mean() + 25 - 42) < 3


def test_low_tones_are_red_high_ones_violet_with_even_octaves() -> None:
    hues = [colorsys.rgb_to_hsv(*hue(hertz))[0] for hertz in (60, 120, 240, 480, 960, 1920)]
    assert hues[0] == pytest.approx(0, abs=1e-6)
    assert np.diff(hues) == pytest.approx(np.diff(hues).mean(), rel=0.25)
    assert 0.7 < colorsys.rgb_to_hsv(*hue(9000))[0] < 0.85


def test_heat_is_where_the_map_is_strong() -> None:
    beams = np.zeros((36, 64))
    beams[9, 48] = 5.0
    drawn = np.abs(heat(GREY, beams) - GREY).sum(-1)
    row, column = np.unravel_index(drawn.argmax(), drawn.shape)
    assert abs(row + 0.5 - 9.5 / 36 * 60) <= 1
    assert abs(column + 0.5 - 48.5 / 64 * 80) <= 1
    assert drawn[40:].max() < 1e-6


@pytest.mark.parametrize("beams", [np.zeros((36, 64)), np.full((36, 64), 3.0)])
def test_a_map_without_a_direction_draws_nothing(beams: np.ndarray) -> None:
    assert np.array_equal(heat(GREY, beams), GREY)


def test_heat_does_not_depend_on_the_level() -> None:
    beams = np.random.default_rng(0).random((36, 64))
    assert np.allclose(heat(GREY, beams), heat(GREY, 1e6 * beams), atol=1e-6)


def test_moods() -> None:
    assert np.array_equal(mood(GREY, Readings()), GREY)
    neutral = Readings(temperature=20, humidity=40, lux=400)
    assert np.allclose(mood(GREY, neutral), GREY)
    red_over_blue = [
        float((m := mood(GREY, replace(neutral, temperature=t)))[..., 0].mean() - m[..., 2].mean())
        for t in (-10, 10, 20, 30)
    ]
    assert red_over_blue == sorted(set(red_over_blue))
    assert mood(GREY, replace(neutral, lux=1.0)).mean() < mood(GREY, replace(neutral, lux=50.0)).mean()
    photo = np.random.default_rng(0).random((60, 80, 3), np.float32)
    assert mood(photo, replace(neutral, humidity=95)).std() < 0.9 * photo.std()


@given(st.lists(anything, min_size=5, max_size=5))
@settings(max_examples=50, deadline=None)
def test_gauges_of_any_reading(values: list[float | None]) -> None:
    read = gauges(Readings(values[0], values[1], None, values[2], values[3], values[4]))
    for value, gauge in zip(values, read, strict=True):
        known = value is not None and not np.isnan(value)
        assert gauge["value"] == (value if known else None)
        assert (gauge["word"] is not None) == known
        assert 0 <= gauge["share"] <= 1 if known else gauge["share"] is None


def test_gauges_rise_with_the_reading() -> None:
    shares = [[g["share"] for g in gauges(Readings(t, 2 * t, None, t**3, t, t**2))] for t in (1, 10, 40)]
    assert (np.diff(shares, axis=0) > 0).all()
