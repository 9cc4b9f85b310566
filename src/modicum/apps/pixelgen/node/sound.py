"""Sound in a few bytes: how loud, which tone is the loudest, and 32 mel bands.

As in the published firmware, the loudest tone is the largest of bins 0..2047 of a 4096-point FFT without a window,
f = rate * bin / 4096. Levels are decibels over one step of 16-bit sound.

One microphone cannot tell where a sound comes from. `array` simulates four of them in a square, so that a direction can
be found.
"""

from __future__ import annotations

import wave
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from modicum.apps.pixelgen.readings import MEL_BANDS, Sound
from modicum.errors import UnusableData

BUFFER = 4096
BINS = BUFFER // 2
SPEED_OF_SOUND = 343.0
HALF_DECIBELS = 2
WIDEST = 4

Samples = NDArray[np.float64]


class Microphone(Protocol):
    """Anything that can be listened to once per frame."""

    def read(self) -> Sound:
        """What is heard now, summed up."""


class Recording:
    """A WAV file, heard in buffers of 4096 samples, over and over.

    Args:
        path: mono or not, 8 to 32 bits; channels are averaged.

    Attributes:
        samples: float64 `[n]`, in steps of 16-bit sound.
        rate: samples per second.
    """

    def __init__(self, path: Path) -> None:
        self.samples, self.rate = read_wav(path)
        self._place = 0

    def read(self) -> Sound:
        """The next buffer, summed up."""
        places = (self._place + np.arange(BUFFER)) % len(self.samples)
        self._place = int(places[-1] + 1) % len(self.samples)
        return summary(self.samples[places], self.rate)


def read_wav(path: Path) -> tuple[Samples, int]:
    """Samples float64 `[n]` in steps of 16-bit sound, and their rate.

    Raises:
        UnusableData: it is no uncompressed WAV file, or it is empty.
    """
    try:
        with wave.open(str(path), "rb") as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (OSError, wave.Error, EOFError, RuntimeError) as error:  # RuntimeError: a chunk of impossible size
        raise UnusableData(f"{path} is not a WAV file.", "Give uncompressed PCM sound.") from error
    if width > WIDEST:
        raise UnusableData(f"{path} has {8 * width} bits per sample.", "Give 8 to 32 bits.")
    data = data[: len(data) // (width * channels) * width * channels]
    if not data or not rate:
        raise UnusableData(f"{path} holds no sound.", "Give a recording of at least one sample.")
    return _samples(data, width).reshape(-1, channels).mean(1), rate


def _samples(data: bytes, width: int) -> Samples:
    """Bytes to steps of 16-bit sound; 8-bit sound is unsigned, wider sound is signed, little-endian."""
    steps = np.frombuffer(data, np.uint8).reshape(-1, width)
    if width == 1:
        return (steps[:, 0].astype(np.float64) - 128) * 256
    filled = np.zeros((len(steps), WIDEST), np.uint8)
    filled[:, WIDEST - width :] = steps  # the upper bytes of an int32
    return filled.view("<i4")[:, 0].astype(np.float64) / 65536


def summary(buffer: Samples, rate: int) -> Sound:
    """Level, loudest tone and mel bands of 4096 samples in steps of 16-bit sound."""
    spectrum = np.abs(np.fft.rfft(buffer)[:BINS])
    power = 2 * (spectrum / BUFFER) ** 2  # [BINS], sums to the mean square
    bands = decibels(mel_filters(rate) @ power)
    return Sound(
        level=float(decibels(np.mean(buffer**2))),
        frequency=rate * int(spectrum.argmax()) / BUFFER,
        mel=np.clip(np.rint(HALF_DECIBELS * bands), 0, 255).astype(np.uint8),
    )


def decibels(power: NDArray | np.floating) -> NDArray[np.float64]:
    """Of a mean square, over one step; never below 0."""
    return 10 * np.log10(np.maximum(power, 1.0))


@lru_cache(maxsize=4)
def mel_filters(rate: int) -> Samples:
    """Overlapping triangles on the mel scale from 0 to half the rate, float64 `[32, 2048]`."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, MEL_BANDS + 2) / 2595) - 1)  # [34] in hertz
    low, middle, high = (part[:, None] for part in (corners[:-2], corners[1:-1], corners[2:]))
    frequency = rate * np.arange(BINS) / BUFFER
    rising, falling = (frequency - low) / (middle - low), (high - frequency) / (high - middle)
    return np.maximum(0, np.minimum(rising, falling))


def array(samples: Samples, rate: int, azimuth: float, elevation: float, spacing: float = 0.04) -> Samples:
    """What four microphones in a square hear of a distant source.

    Args:
        samples: float64 `[n]` at the middle of the square.
        rate: samples per second.
        azimuth: radians to the right of straight ahead.
        elevation: radians above it.
        spacing: side of the square in metres.

    Returns:
        float64 `[4, n]`: lower left, lower right, upper left, upper right.
    """
    places = spacing / 2 * np.array([(-1, -1), (1, -1), (-1, 1), (1, 1)])  # [4, 2]
    direction = np.array((np.cos(elevation) * np.sin(azimuth), np.sin(elevation)))
    early = places @ direction / SPEED_OF_SOUND  # [4] seconds; nearer to the source is earlier
    frequency = np.fft.rfftfreq(len(samples), 1 / rate)
    shifted = np.fft.rfft(samples) * np.exp(2j * np.pi * frequency * early[:, None])
    return np.fft.irfft(shifted, len(samples))
