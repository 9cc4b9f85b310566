"""What the HM01B0 would have seen: a colour picture to a small, dim, slightly noisy grey one.

    light = resize(luma(picture ^ gamma)) * vignette         linear, area means, corners darker
    pixel = round(255 * light * exposure + read noise)       cut to 0..255, not to the eye's gamma: a raw sensor value

The exposure follows the brightness as in the published register script: target mean 0x3C, thresholds 0x07 and 0x0F, at
most 3152 lines of integration, analog gain 8, digital gain 2. We read the thresholds as a loop with play: it settles
when the mean is within 0x07 of the target, and moves again when it is off by more than 0x0F. At boot it runs on at
most 10 frames. A picture file has no absolute brightness; white is taken to fill a pixel in 128 lines.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from modicum.apps.pixelgen.modes import QVGA, Bytes, Mode

TARGET, SETTLED, DISTURBED = 0x3C, 0x07, 0x0F
LONGEST = 0x0C50 * 8 * 2
"""Lines of integration times gains."""
SHORTEST = 2
WHITE_LINES = 128
BOOT_FRAMES = 10
LARGEST_STEP = 4.0
LUMA = np.array((0.299, 0.587, 0.114), np.float32)


class CameraSettings(BaseModel):
    """Optics and electronics."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    mode: Mode = Field(QVGA, description="size and depth of the picture")
    gamma: float = Field(2.2, gt=0, description="of the picture files")
    corners: float = Field(0.6, gt=0, le=1, description="brightness of the corners; 1 is a perfect lens")
    read_noise: float = Field(1.5, ge=0, description="standard deviation, in steps of 0 to 255")


class Camera:
    """A camera with its exposure.

    Args:
        settings: optics and electronics.
        seed: of the noise.

    Attributes:
        exposure: lines of integration times gain.
        settled: whether the exposure is at rest.
    """

    def __init__(self, settings: CameraSettings | None = None, seed: int = 0) -> None:
        self.settings = settings or CameraSettings()
        self.exposure, self.settled = 4.0 * WHITE_LINES, False
        self._random = np.random.default_rng(seed)
        self._vignette = vignette(self.settings.mode.shape, self.settings.corners)
        self._linear = ((np.arange(256) / 255) ** self.settings.gamma).astype(np.float32)

    def light(self, picture: Bytes) -> NDArray[np.float32]:
        """Linear luma of a picture uint8 `[rows, columns, 3]` before the lens, float32 `[H, W]` in 0..1."""
        height, width = self.settings.mode.shape
        grey = self._linear[_cropped(picture, width / height)] @ LUMA
        return area_weights(grey.shape[0], height) @ grey @ area_weights(grey.shape[1], width).T  # [H, W]

    def boot(self, picture: Bytes) -> int:
        """Let the exposure settle; returns the number of frames that this took, 10 at most."""
        light = self.light(picture)
        taken = 0
        while taken < BOOT_FRAMES and not self.settled:
            self.expose(light)
            taken += 1
        return taken

    def expose(self, light: NDArray[np.float32]) -> Bytes:
        """A frame uint8 `[H, W]` of a scene `light`; adapts the exposure for the next one."""
        signal = 255 * light * self._vignette * (self.exposure / WHITE_LINES)
        noise = self._random.standard_normal(light.shape, np.float32) * self.settings.read_noise
        frame = np.clip(np.rint(signal + noise), 0, 255).astype(np.uint8)
        self._adapt(float(frame.mean()))
        return frame

    def _adapt(self, mean: float) -> None:
        off = abs(mean - TARGET)
        self.settled = off <= (DISTURBED if self.settled else SETTLED)
        if not self.settled:
            step = np.clip(TARGET / max(mean, 1.0), 1 / LARGEST_STEP, LARGEST_STEP)
            self.exposure = float(np.clip(self.exposure * step, SHORTEST, LONGEST))


@lru_cache(maxsize=8)
def area_weights(inputs: int, outputs: int) -> NDArray[np.float32]:
    """Which share of each output cell every input cell covers, float32 `[outputs, inputs]`; rows sum to 1."""
    edges = np.arange(outputs + 1) * inputs / outputs
    cells = np.arange(inputs)
    shared = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return (np.maximum(shared, 0) * outputs / inputs).astype(np.float32)


def vignette(shape: tuple[int, int], corners: float) -> NDArray[np.float32]:
    """Brightness over the picture, float32 `[H, W]`: the cosine to the fourth, 1 in the middle, `corners` there."""
    rows, columns = (np.linspace(-1, 1, side, dtype=np.float32) for side in shape)
    distance = (rows[:, None] ** 2 + columns**2) / 2  # 1 in the corners
    slope = corners**-0.5 - 1  # cos^4 = 1 / (1 + tan^2)^2
    return (1 + slope * distance) ** -2


def _cropped(picture: Bytes, aspect: float) -> Bytes:
    """The largest middle part with that ratio of width to height."""
    rows, columns = picture.shape[:2]
    height, width = min(rows, max(1, round(columns / aspect))), min(columns, max(1, round(rows * aspect)))
    top, left = (rows - height) // 2, (columns - width) // 2
    return picture[top : top + height, left : left + width]
