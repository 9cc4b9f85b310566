"""Readings and sound as payloads.

    sensors  12 bytes   f32 temperature | u16 humidity * 100 | u32 pressure | u16 3000 log2(1 + lux)
    audio    36 bytes   u16 level * 100 | u16 frequency | 32 mel bytes

Light spans seven decades, so its logarithm is sent, in steps of 0.02 %. All ones (NaN for the temperature) is unknown.
Values that a field cannot hold are cut to its range.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from modicum.apps.pixelgen.readings import MEL_BANDS, Readings, Sound
from modicum.errors import BadPacket

_SENSORS = struct.Struct("<fHIH")
_AUDIO = struct.Struct(f"<HH{MEL_BANDS}s")
_NONE16, _NONE32 = 0xFFFF, 0xFFFFFFFF
LUX_STEPS = 3000
HUNDREDTHS = 100


def pack_readings(readings: Readings) -> bytes:
    """12 bytes; sound is not in them."""
    lux = None if readings.lux is None else math.log2(1 + max(readings.lux, 0))
    return _SENSORS.pack(
        math.nan if readings.temperature is None else readings.temperature,
        _scaled(readings.humidity, HUNDREDTHS, _NONE16),
        _scaled(readings.pressure, 1, _NONE32),
        _scaled(lux, LUX_STEPS, _NONE16),
    )


def unpack_readings(payload: bytes) -> Readings:
    """The readings of such a payload.

    Raises:
        BadPacket: it does not have 12 bytes.
    """
    temperature, humidity, pressure, lux = _fields(_SENSORS, payload)
    return Readings(
        temperature=temperature if math.isfinite(temperature) else None,
        humidity=None if humidity == _NONE16 else humidity / HUNDREDTHS,
        pressure=None if pressure == _NONE32 else float(pressure),
        lux=None if lux == _NONE16 else 2 ** (lux / LUX_STEPS) - 1,
    )


def pack_sound(sound: Sound) -> bytes:
    """36 bytes."""
    level = _scaled(sound.level, HUNDREDTHS, _NONE16)
    return _AUDIO.pack(level, _scaled(sound.frequency, 1, _NONE16), sound.mel.tobytes())


def unpack_sound(payload: bytes) -> Sound:
    """The sound of such a payload.

    Raises:
        BadPacket: it does not have 36 bytes.
    """
    level, frequency, mel = _fields(_AUDIO, payload)
    return Sound(level / HUNDREDTHS, float(frequency), np.frombuffer(mel, np.uint8))


def _scaled(value: float | None, factor: int, unknown: int) -> int:
    if value is None or math.isnan(value):
        return unknown
    return round(min(max(value * factor, 0), unknown - 1))


def _fields(layout: struct.Struct, payload: bytes) -> tuple:
    if len(payload) != layout.size:
        raise BadPacket(
            f"A payload has {len(payload)} bytes instead of {layout.size}.", "Check the node's version."
        )
    return layout.unpack(payload)
