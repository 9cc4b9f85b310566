"""Sound drawn onto a picture.

    one microphone    it cannot tell where the sound is: rings around a place that the user names, wide when it is
                      loud, red for low and violet for high tones, with the numbers written beside them
    four microphones  a map of directions (`beams.py`) laid over the picture as heat

Legend: pictures float32 [H, W, 3] in 0..1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]

LOUDEST = 90.0
LOWEST, HIGHEST = 60.0, 4000.0
VIOLET = 0.78
RINGS = 3
WIDEST = 0.42  # radius of the outermost ring at full level, as a share of the height
SHARPEN = 6  # powers of the map: shows where its middle is
STRENGTH = 0.5
EDGES = np.array((0.0, 0.35, 0.7, 1.0))
HEAT = np.array(((0.25, 0.05, 0.45), (0.80, 0.15, 0.40), (1.0, 0.55, 0.15), (1.0, 0.95, 0.60)))
"""From faint to strong."""


def rings(picture: Picture, anchor: tuple[float, float], level: float, frequency: float) -> Picture:
    """Rings of a sound, with its level and loudest tone in words.

    Args:
        picture: float32 `[H, W, 3]`.
        anchor: where the sound is said to be, (right, down) in 0..1.
        level: decibels over one step.
        frequency: hertz.

    Returns:
        float32 `[H, W, 3]`; the picture itself where it is silent.
    """
    height, width = picture.shape[:2]
    share = float(np.clip(level / LOUDEST, 0, 1))
    radius = WIDEST * share * height
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    distance = np.hypot(columns - anchor[0] * width, rows - anchor[1] * height)  # [H, W]
    reach = distance / max(radius, 1e-6)
    line = np.exp(-((((reach * RINGS + 0.5) % 1 - 0.5) * radius / RINGS / 1.6) ** 2)) * (reach > 0.5 / RINGS)
    glow = 0.35 * np.exp(-2 * reach**2)
    alpha = np.where(reach <= 1 + 0.5 / RINGS, 0.9 * line * (1 - 0.6 * np.minimum(reach, 1)), 0) + glow
    drawn = _blend(picture, hue(frequency), share * alpha)
    return _labelled(drawn, anchor, radius, f"{level:.0f} dB  {frequency:.0f} Hz") if share else drawn


def heat(picture: Picture, beams: NDArray[np.float64]) -> Picture:
    """A sound map `[rows, columns]` laid over a picture; only differences of direction are shown, not the level.

    Returns:
        float32 `[H, W, 3]`; the picture itself if no direction stands out.
    """
    low, high = float(beams.min()), float(beams.max())
    if high - low <= 1e-9 * high:
        return picture
    strength = _enlarged((beams - low) / (high - low), picture.shape[:2]) ** SHARPEN  # [H, W]
    colour = np.stack([np.interp(strength, EDGES, channel) for channel in HEAT.T], axis=-1)
    return _blend(picture, colour, STRENGTH * strength)


def hue(frequency: float) -> NDArray[np.float64]:
    """The colour of a tone, float64 `[3]`: red at 60 Hz, violet at 4 kHz, even steps per octave."""
    octaves = np.log(np.clip(frequency, LOWEST, HIGHEST) / LOWEST) / np.log(HIGHEST / LOWEST)
    turns = VIOLET * octaves + np.array((0, 2 / 3, 1 / 3))
    return 0.25 + 0.75 * np.clip(np.abs(6 * (turns % 1) - 3) - 1, 0, 1)


def _blend(picture: Picture, colour: NDArray, alpha: NDArray) -> Picture:
    weight = np.clip(alpha, 0, 1)[..., None]
    return (picture * (1 - weight) + colour * weight).astype(np.float32)


def _enlarged(values: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Bilinear, to `[H, W]`."""
    for axis, size in enumerate(shape):
        cells = values.shape[axis]
        places = (np.arange(size) + 0.5) * cells / size - 0.5
        low = np.clip(np.floor(places).astype(int), 0, max(cells - 2, 0))
        part = np.clip(places - low, 0, 1)
        part = part[:, None] if axis == 0 else part
        values = (
            values.take(low, axis) * (1 - part) + values.take(np.minimum(low + 1, cells - 1), axis) * part
        )
    return values


def _labelled(picture: Picture, anchor: tuple[float, float], radius: float, text: str) -> Picture:
    from PIL import Image, ImageDraw, ImageFont

    height, width = picture.shape[:2]
    image = Image.fromarray(np.rint(255 * picture).clip(0, 255).astype(np.uint8))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(max(9, height / 18))
    _, _, right, bottom = draw.textbbox((0, 0), text, font)
    x = float(np.clip(anchor[0] * width - right / 2, 3, max(3, width - right - 3)))
    y = float(np.clip(anchor[1] * height - radius - bottom - 6, 3, max(3, height - bottom - 3)))
    draw.text((x, y), text, (255, 255, 255), font, stroke_width=1, stroke_fill=(0, 0, 0))
    return (np.asarray(image) / 255).astype(np.float32)
