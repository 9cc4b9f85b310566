from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modicum.apps.pixelgen.node.sound import array
from modicum.apps.pixelgen.overlay import Field, beam_map
from modicum.errors import InvalidSetting

RATE, LENGTH, SIDE, SOUND_SPEED = 4000, 4096, 0.2, 343.0
PLACES = SIDE / 2 * np.array([(-1, -1), (1, -1), (-1, 1), (1, 1)])


def plane_wave(azimuth: float, elevation: float, hertz: float, loud: float = 1000.0) -> np.ndarray:
    """A distant tone at four microphones, straight from the definition."""
    seconds = np.arange(LENGTH) / RATE
    early = PLACES @ (np.cos(elevation) * np.sin(azimuth), np.sin(elevation)) / SOUND_SPEED
    return loud * np.sin(2 * np.pi * hertz * (seconds + early[:, None]))


def peak(beams: np.ndarray) -> tuple[int, int]:
    row, column = np.unravel_index(beams.argmax(), beams.shape)
    return int(row), int(column)


@given(st.integers(1, 34), st.integers(1, 62), st.floats(300, 800))
@settings(max_examples=25, deadline=None)
def test_a_plane_wave_is_found_where_it_comes_from(row: int, column: int, hertz: float) -> None:
    azimuth, elevation = Field().azimuth()[column], Field().elevation()[row]
    found = peak(beam_map(plane_wave(azimuth, elevation, hertz), RATE, SIDE))
    assert abs(found[0] - row) <= 1
    assert abs(found[1] - column) <= 1


def test_left_is_left_and_up_is_up() -> None:
    row, column = peak(beam_map(plane_wave(-0.4, 0.3, 500), RATE, SIDE))
    assert column < 16
    assert row < 9


def test_power_in_its_direction_is_that_of_the_tone() -> None:
    hertz = 512 * RATE / LENGTH  # a bin of the spectrum
    beams = beam_map(plane_wave(0.0, 0.0, hertz, loud=200), RATE, SIDE)
    assert beams.shape == (36, 64)
    assert beams.max() == pytest.approx(200**2 / 2, rel=0.01)


def test_noise_of_all_frequencies_has_a_direction_too() -> None:
    noise = np.random.default_rng(0).normal(0, 1000, LENGTH)
    azimuth, elevation = Field().azimuth()[50], Field().elevation()[10]
    row, column = peak(beam_map(array(noise, RATE, azimuth, elevation), RATE))
    assert abs(row - 10) <= 1
    assert abs(column - 50) <= 1


def test_silence_has_no_direction() -> None:
    beams = beam_map(np.full((4, LENGTH), 7.0), RATE)
    assert np.ptp(beams) < 1e-12


@pytest.mark.parametrize("shape", [(LENGTH,), (3, LENGTH), (4, 0)])
def test_what_is_not_heard_by_four_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidSetting, match="four microphones"):
        beam_map(np.zeros(shape), RATE)
