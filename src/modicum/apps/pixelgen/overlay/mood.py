"""Readings as the mood of a picture: what one would feel standing there, not what a camera would see.

    temperature   cold is tinted blue, hot is tinted orange; 20 degrees are neutral
    humidity      damp air is hazy, from 50 percent on
    light         below 400 lux it gets darker and bluer, as eyes see dusk

Unknown readings change nothing. The tints are mild and their sizes are our choice. Legend: pictures float32 [H, W, 3]
in 0..1.
"""

from __future__ import annotations

import numpy as np

from modicum.apps.pixelgen.overlay.sound import Picture
from modicum.apps.pixelgen.readings import Readings

NEUTRAL, SPAN = 20.0, 20.0  # degrees; full tint so far away from it
WARM = np.array((0.16, 0.02, -0.16), np.float32)
HAZE = np.array((0.78, 0.81, 0.84), np.float32)
CLEAR, THICKEST = 50.0, 0.3  # percent; share of haze at 100 percent
DUSK, NIGHT = 400.0, np.array((0.45, 0.52, 0.68), np.float32)


def mood(picture: Picture, readings: Readings) -> Picture:
    """The picture as warm, hazy and dark as the readings say, float32 `[H, W, 3]`."""
    mooded = picture
    if readings.temperature is not None:
        warmth = np.float32(np.clip((readings.temperature - NEUTRAL) / SPAN, -1, 1))
        mooded = mooded * (1 + warmth * WARM)
    if readings.humidity is not None:
        haze = np.float32(THICKEST * np.clip((readings.humidity - CLEAR) / (100 - CLEAR), 0, 1))
        mooded = mooded * (1 - haze) + HAZE * haze
    if readings.lux is not None:
        dark = np.float32(1 - np.clip(np.log1p(max(readings.lux, 0)) / np.log1p(DUSK), 0, 1))
        mooded = mooded * (1 - dark * (1 - NIGHT))
    return np.clip(mooded, 0, 1)
