"""Readings for a panel of instruments: a number, its place on a scale, and the word that the generator is told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from modicum.apps.pixelgen.prompt import HUMIDITY, LIGHT, LOUDNESS, PITCH, TEMPERATURE, Scale
from modicum.apps.pixelgen.readings import Readings


@dataclass(frozen=True)
class Gauge:
    """One instrument.

    Attributes:
        scale: the reading and its words.
        label: what it is called.
        unit: of the number.
        low: where the scale begins.
        high: where it ends.
        even: steps are of equal size; else every tenfold is as wide as the last.
    """

    scale: Scale
    label: str
    unit: str
    low: float
    high: float
    even: bool = True

    def read(self, readings: Readings) -> dict[str, Any]:
        """Label, unit, value, share of the scale in 0..1 and word; value, share and word None if unknown."""
        value = getattr(readings, self.scale.reading)
        known = value is not None and math.isfinite(value)
        return {
            "name": self.scale.reading,
            "label": self.label,
            "unit": self.unit,
            "value": value if known else None,
            "share": self._share(value) if known else None,
            "word": self.scale.word(readings) if known else None,
        }

    def _share(self, value: float) -> float:
        low, high = self.low, self.high
        if not self.even:
            low, high, value = (math.log1p(max(number, 0)) for number in (low, high, value))
        return min(max((value - low) / (high - low), 0.0), 1.0)


GAUGES = (
    Gauge(TEMPERATURE, "Temperature", "°C", -10, 45),
    Gauge(HUMIDITY, "Humidity", "%", 0, 100),
    Gauge(LIGHT, "Light", "lx", 0, 100_000, even=False),
    Gauge(LOUDNESS, "Sound level", "dB", 0, 90),
    Gauge(PITCH, "Loudest tone", "Hz", 0, 4000, even=False),
)


def gauges(readings: Readings) -> list[dict[str, Any]]:
    """What every instrument shows, as plain JSON values."""
    return [gauge.read(readings) for gauge in GAUGES]
