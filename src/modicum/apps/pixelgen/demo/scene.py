"""A shore, drawn by formulas: the sun goes over it, a boat with a humming motor crosses it.

It is what the node looks at when nothing else is given: nothing has to be downloaded, and where the sound comes from is
known, so that the sound map can be compared with the boat. A day has 90 frames.

Legend: pictures uint8 [H, W, 3]; x to the right and y downwards in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from modicum.apps.pixelgen.modes import Bytes
from modicum.apps.pixelgen.node.sound import BUFFER, Samples, array, summary
from modicum.apps.pixelgen.overlay.beams import Field
from modicum.apps.pixelgen.readings import Readings, Sound

HEIGHT, WIDTH = 366, 486
DAY = 90
HORIZON = 0.48
RATE = 3_989
NOISE = 30.0
SPACING = 0.2
"""Metres between the microphones: tells directions apart up to 857 Hz, and the motor hums below that."""
SKY = ((0.09, 0.12, 0.26), (0.16, 0.20, 0.36)), ((0.25, 0.48, 0.85), (0.72, 0.84, 0.95))
SUNSET = (0.95, 0.55, 0.30)

Colours = NDArray[np.float32]


class Shore:
    """The scene and its weather: pictures and sensors of a node in one.

    Args:
        seed: of waves and noise.
        first: frame of the day to begin with.
    """

    def __init__(self, seed: int = 0, first: int = 12) -> None:
        self.frame, self._random = first - 1, np.random.default_rng(seed)
        y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
        self._x, self._y = (x + 0.5) / WIDTH, (y + 0.5) / HEIGHT
        self._grass = self._random.random((HEIGHT, WIDTH), np.float32)

    def __iter__(self) -> Iterator[Bytes]:
        return self

    def __next__(self) -> Bytes:
        self.frame += 1
        return self.picture()

    @property
    def daylight(self) -> float:
        """0 at midnight, 1 at noon."""
        return float(np.clip(0.5 + 0.75 * np.sin(2 * np.pi * self.frame / DAY), 0, 1))

    @property
    def boat(self) -> tuple[float, float]:
        """Where the boat is, (right, down) in 0..1."""
        way = np.sin(2 * np.pi * self.frame / 60)
        return float(0.5 + 0.34 * way), float(HORIZON + 0.17 + 0.01 * np.sin(self.frame))

    def read(self, light: NDArray[np.float32]) -> Readings:
        """The weather now; the light is that of the scene."""
        day = self.daylight
        lux = 2.0 + float(light.mean()) * 40_000 * day**2
        return Readings(1 + 12 * day, 85 - 60 * day, 101_325.0, lux)

    def picture(self) -> Bytes:
        """What is there to see now, uint8 `[366, 486, 3]`."""
        colours = self._sky()
        for shape, colour in (self._hills(), self._sea(), self._boat(), self._meadow()):
            np.copyto(colours, colour, where=shape[..., None])
        return np.rint(255 * np.clip(colours, 0, 1)).astype(np.uint8)

    def _sky(self) -> Colours:
        day, (dark, bright) = self.daylight, (np.array(pair, np.float32) for pair in SKY)
        top, bottom = dark + (bright - dark) * day
        down = np.clip(self._y / HORIZON, 0, 1)[..., None]
        glow = 4 * day * (1 - day) * down**3 * 0.7
        sky = (top + (bottom - top) * down) * (1 - glow) + rgb(*SUNSET) * glow
        turn = 2 * np.pi * self.frame / DAY
        distance = np.hypot(
            (self._x - 0.5 + 0.38 * math.cos(turn)) * 1.33, self._y - 0.5 + 0.38 * math.sin(turn)
        )
        sun = np.exp(-((distance / 0.035) ** 4)) + 0.35 * np.exp(-distance / 0.07)
        clouds = np.sin(9 * self._x + 0.03 * self.frame + 3 * np.sin(21 * self._y)) * np.sin(26 * self._y + 2)
        white = np.clip(clouds - 0.45, 0, 1)[..., None] * (0.3 + 0.7 * day) * 0.7
        return sky * (1 - white) + white + sun[..., None] * rgb(1.0, 0.93, 0.75)

    def _hills(self) -> tuple[NDArray[np.bool_], Colours]:
        top = HORIZON - 0.07 - 0.05 * np.sin(5 * self._x + 1) - 0.025 * np.sin(13 * self._x)
        shade = 0.75 + 0.25 * np.clip((self._y - top) * 9, 0, 1) + 0.08 * (self._grass - 0.5)
        return self._y > top, self._lit(rgb(0.30, 0.42, 0.38) * shade[..., None])

    def _sea(self) -> tuple[NDArray[np.bool_], Colours]:
        depth = np.clip((self._y - HORIZON) / (1 - HORIZON), 1e-3, 1)
        waves = np.sin(9 / (depth + 0.12) + 5 * self._x + 0.7 * self.frame) + 0.5 * np.sin(17 / (depth + 0.2))
        glitter = 0.035 * waves * depth + 0.03 * (self._grass - 0.5)
        colour = rgb(0.16, 0.42, 0.62) * (1.25 - 0.5 * depth)[..., None] + glitter[..., None]
        return self._y > HORIZON, self._lit(colour)

    def _boat(self) -> tuple[NDArray[np.bool_], Colours]:
        x, y = self.boat
        right, down = np.abs(self._x - x), self._y - y
        hull = (down > 0) & (down < 0.045) & (right < 0.075 - 0.7 * down)
        sail = (down < -0.006) & (down > -0.17) & (right < 0.32 * (down + 0.17)) & (self._x > x - 0.004)
        colour = np.where(sail[..., None], rgb(0.95, 0.93, 0.88), rgb(0.34, 0.07, 0.05))
        return hull | sail, self._lit(colour)

    def _meadow(self) -> tuple[NDArray[np.bool_], Colours]:
        top = 0.83 + 0.05 * np.sin(4 * self._x - 0.6) + 0.006 * np.sin(90 * self._x)
        blades = 0.55 + 0.5 * self._grass
        return self._y > top, self._lit(rgb(0.42, 0.62, 0.20) * blades[..., None])

    def _lit(self, colour: Colours) -> Colours:
        """A colour by day or by night."""
        day = self.daylight
        return colour * (day + (1 - day) * rgb(0.22, 0.25, 0.36))


class Motor:
    """The sound of the boat: a tone and its overtone, up and down.

    Args:
        shore: where the boat is.
        seed: of the noise that four microphones add.
    """

    def __init__(self, shore: Shore, seed: int = 0) -> None:
        self.shore, self._random = shore, np.random.default_rng(seed)

    def read(self) -> Sound:
        """The sound now, as one microphone hears it."""
        return summary(self._samples(), RATE)

    def around(self) -> tuple[Samples, int, float]:
        """The sound now, as four microphones around the camera hear it.

        Returns:
            Samples float64 `[4, n]`, how many a second has, and the side of the square in metres.
        """
        field, (x, y) = Field(), self.shore.boat
        azimuth, elevation = field.width * (x - 0.5), field.height * (0.5 - y)
        heard = array(self._samples(), RATE, azimuth, elevation, SPACING)
        return heard + self._random.normal(0, NOISE, heard.shape), RATE, SPACING

    def _samples(self) -> Samples:
        frame = self.shore.frame
        turns = 2 * np.pi * (np.arange(BUFFER) + frame * BUFFER) / RATE
        pitch, loudness = 420 + 160 * np.sin(frame / 9), 1500 + 1200 * np.sin(frame / 7)
        return loudness * (np.sin(pitch * turns) + 0.4 * np.sin(1.3 * pitch * turns))


def rgb(red: float, green: float, blue: float) -> Colours:
    """A colour, float32 `[3]`; in double precision a picture would take twice the time."""
    return np.array((red, green, blue), np.float32)
