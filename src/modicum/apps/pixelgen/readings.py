"""What a node knows beside its picture. Every value may be unknown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MEL_BANDS = 32


@dataclass(frozen=True)
class Readings:
    """Scalar sensors; None is unknown.

    Attributes:
        temperature: degrees Celsius.
        humidity: relative, percent.
        pressure: pascal (not hectopascal).
        lux: illuminance.
        level: of the sound, decibels over one step of 16-bit sound: 0 is silence, 90.3 a full-scale square wave.
        frequency: of the loudest tone, hertz.
    """

    temperature: float | None = None
    humidity: float | None = None
    pressure: float | None = None
    lux: float | None = None
    level: float | None = None
    frequency: float | None = None


@dataclass(frozen=True)
class Sound:
    """One buffer of sound, summed up.

    Attributes:
        level: decibels, as in `Readings`.
        frequency: of the loudest tone, hertz.
        mel: uint8 [32], loudness of the mel bands, low to high, in half decibels of the same scale.
    """

    level: float
    frequency: float
    mel: NDArray[np.uint8]
