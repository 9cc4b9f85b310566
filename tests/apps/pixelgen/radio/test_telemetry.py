from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modicum.apps.pixelgen.radio.telemetry import (
    pack_readings,
    pack_sound,
    unpack_readings,
    unpack_sound,
)
from modicum.apps.pixelgen.readings import Readings, Sound
from modicum.errors import BadPacket

known = st.builds(
    Readings,
    temperature=st.floats(-40, 85, width=32),
    humidity=st.floats(0, 100),
    pressure=st.floats(30_000, 110_000),
    lux=st.floats(0, 120_000),
)


@given(known)
def test_readings_round_trip_within_a_step(readings: Readings) -> None:
    payload = pack_readings(readings)
    assert len(payload) == 12
    back = unpack_readings(payload)
    assert back.temperature == readings.temperature
    assert back.humidity == pytest.approx(readings.humidity, abs=0.0051)
    assert back.pressure == pytest.approx(readings.pressure, abs=0.51)
    assert back.lux + 1 == pytest.approx(readings.lux + 1, rel=1.2e-4)


def test_unknown_stays_unknown_and_too_much_is_cut() -> None:
    assert unpack_readings(pack_readings(Readings())) == Readings()
    far = unpack_readings(pack_readings(Readings(21.0, 1e9, -5.0, 1e300)))
    assert (far.humidity, far.pressure) == (655.34, 0.0)
    assert math.isfinite(far.lux or math.nan)
    odd = Readings(math.nan, math.nan, math.nan, math.nan)
    assert unpack_readings(pack_readings(odd)) == Readings()


@given(st.binary(max_size=40))
def test_any_payload_is_readings_or_refused(payload: bytes) -> None:
    if len(payload) == 12:
        found = unpack_readings(payload)
        assert all(v is None or math.isfinite(v) for v in vars(found).values())
    else:
        with pytest.raises(BadPacket, match="12"):
            unpack_readings(payload)


@given(st.floats(0, 90.3), st.integers(0, 24_000), st.binary(min_size=32, max_size=32))
def test_sound_round_trip(level: float, frequency: int, mel: bytes) -> None:
    payload = pack_sound(Sound(level, frequency, np.frombuffer(mel, np.uint8)))
    assert len(payload) == 36
    back = unpack_sound(payload)
    assert back.level == pytest.approx(level, abs=0.0051)
    assert back.frequency == frequency
    assert back.mel.tobytes() == mel
    with pytest.raises(BadPacket, match="36"):
        unpack_sound(payload[1:])
