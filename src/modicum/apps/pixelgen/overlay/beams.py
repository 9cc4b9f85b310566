"""Where a sound comes from: delay-and-sum beamforming with four microphones in a square.

A distant source is heard a little earlier by the microphones that are nearer to it. For every direction, the delays
that it would cause are taken back and the four signals are added; where they agree, the sum is strong:

    P(u) = sum_f | sum_m X_m(f) exp(-2 pi i f tau_m(u)) |^2          tau_m(u) = p_m . u / c

X_m is the spectrum of microphone m at place p_m, u the direction, c the speed of sound. Only the strongest bins of the
spectrum take part: the others cost as much and tell less. A square of side d tells directions apart up to c / 2d
hertz; a tone far below that makes a broad beam, whose middle is still in the right place.

Legend: n samples; M = 4 microphones; K bins; map [36, 64], upper left first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from modicum.apps.pixelgen.node.sound import SPEED_OF_SOUND, Samples
from modicum.errors import InvalidSetting

ROWS, COLUMNS = 36, 64
STRONGEST = 48
SQUARE = ((-1, -1), (1, -1), (-1, 1), (1, 1))
"""Lower left, lower right, upper left, upper right, in half sides."""


@dataclass(frozen=True)
class Field:
    """What the map covers: the field of view of the camera between the microphones.

    Attributes:
        width: radians from left to right.
        height: radians from bottom to top.
    """

    width: float = 1.1
    height: float = 0.83

    def azimuth(self) -> NDArray[np.float64]:
        """Of every column, radians to the right, float64 `[64]`."""
        return self.width * ((np.arange(COLUMNS) + 0.5) / COLUMNS - 0.5)

    def elevation(self) -> NDArray[np.float64]:
        """Of every row, radians upwards, float64 `[36]`."""
        return self.height * (0.5 - (np.arange(ROWS) + 0.5) / ROWS)


def beam_map(
    samples: Samples, rate: int, spacing: float = 0.04, field: Field | None = None
) -> NDArray[np.float64]:
    """Power by direction.

    Args:
        samples: float64 `[4, n]`: lower left, lower right, upper left, upper right, seen from behind.
        rate: samples per second.
        spacing: side of the square in metres.
        field: directions; that of the camera by default.

    Returns:
        float64 `[36, 64]`, the mean square that the four would have as one; the largest is where the sound is.

    Raises:
        InvalidSetting: not four microphones, or a silent moment of no samples.
    """
    if samples.ndim != 2 or len(samples) != len(SQUARE) or not samples.shape[1]:
        raise InvalidSetting(
            f"Sound of shape {samples.shape} does not come from four microphones.",
            "Give [4, n] samples: lower left, lower right, upper left, upper right.",
        )
    spectrum = np.fft.rfft(samples) / samples.shape[1]  # [4, bins]
    power = np.abs(spectrum).sum(0)
    power[0] = 0  # a constant offset has no direction
    bins = np.argsort(power)[-STRONGEST:]
    frequency = np.fft.rfftfreq(samples.shape[1], 1 / rate)[bins]  # [K]
    delays = spacing * _delays(field or Field())  # [4, 36, 64]
    turned = np.exp(-2j * np.pi * frequency[:, None, None, None] * delays)  # [K, 4, 36, 64]
    added = np.einsum("mk,kmrc->krc", spectrum[:, bins], turned) / len(SQUARE)
    return 2 * (np.abs(added) ** 2).sum(0)


@lru_cache(maxsize=4)
def _delays(field: Field) -> NDArray[np.float64]:
    """How much earlier each microphone hears a direction, in seconds per metre of side, float64 `[4, 36, 64]`."""
    azimuth, elevation = field.azimuth(), field.elevation()[:, None]
    right = np.cos(elevation) * np.sin(azimuth)  # [36, 64]
    up = np.broadcast_to(np.sin(elevation), right.shape)
    return np.tensordot(np.array(SQUARE) / 2, np.stack((right, up)), 1) / SPEED_OF_SOUND
