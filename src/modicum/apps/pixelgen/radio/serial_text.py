"""The published serial protocol: a frame as hexadecimal text, 3.75 characters per pixel.

    U                                                  once after boot: ready
    +++ frame +++
    0x00000000 3C 3C 3D ...  (16 values)               address = index of the first pixel, row by row
    0x00000010 ...
    --- frame ---
    Temperature = 21.53                                each on a line of its own; not every firmware sends all
    Lux = 310

It has no checksum, no length and no way to find back: the published reader drops the address and strings the values
together, so that one lost line shifts every later pixel (`read_published` does the same, for comparison; what is
meant for use is `text_reader.py`).

The sensor mirrors its picture; `spin=1`, as published, mirrors it back.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from modicum.apps.pixelgen.modes import QVGA, Bytes
from modicum.apps.pixelgen.readings import Readings
from modicum.errors import InvalidSetting

READY = b"U"
BEGIN, END = b"+++ frame +++", b"--- frame ---"
PER_LINE = 16
PIXELS = QVGA.nbytes
LINES = PIXELS // PER_LINE


def encode_frame(pixels: Bytes) -> bytes:
    """A frame uint8 `[244, 324]` as 296,488 characters, byte for byte as published."""
    rows = pixels.reshape(LINES, PER_LINE)
    lines = [
        b"0x%08X %s \n" % (PER_LINE * index, row.tobytes().hex(" ").upper().encode())
        for index, row in enumerate(rows)
    ]
    return b"".join((BEGIN, b"\n", *lines, END, b"\n"))


def encode_readings(readings: Readings) -> bytes:
    """The lines of the known readings; the original reader stores a row when it sees Lux, so that comes last."""
    lines = (
        ("Temperature = %.2f\n", readings.temperature),
        ("Humidity = %.2f\n", readings.humidity),
        ("Pressure = %.0f\n", readings.pressure),
        ("Lux = %.0f\n", readings.lux),
    )
    return "".join(line % value for line, value in lines if value is not None).encode()


def spun(pixels: NDArray, spin: int = 1) -> NDArray:
    """Rows and columns as the published reader arranges them.

    Args:
        pixels: `[244, 324]` in the order of the addresses.
        spin: 1 mirrors left and right (upright, as the sensor mirrors); 3 mirrors top and bottom; 0 transposes; 2
            transposes and mirrors both.

    Raises:
        InvalidSetting: another spin.
    """
    views = (pixels.T, pixels[:, ::-1], pixels.T[::-1, ::-1], pixels[::-1])
    if spin not in range(len(views)):
        raise InvalidSetting(f"Spin {spin} is none of 0, 1, 2, 3.", "1 shows the picture upright.")
    return np.ascontiguousarray(views[spin])  # torch takes no array that runs backwards


def read_published(text: bytes, spin: int = 1) -> Bytes:
    """The frame as the published reader takes it, shift and all: addresses dropped, values cut to 255.

    Raises:
        InvalidSetting: the text holds what is no number.
    """
    body = text.partition(BEGIN + b"\n")[2].partition(END)[0]
    tokens = [token for line in body.splitlines() for token in re.findall(rb"[\w']+", line)[1:]]
    try:
        values = [min(int(token, 16), 255) for token in tokens[:PIXELS]]
    except ValueError as error:
        raise InvalidSetting(
            f"The text holds {error}.", "Read it with TextReader, which leaves holes."
        ) from error
    pixels = np.zeros(PIXELS, np.uint8)
    pixels[: len(values)] = values
    return spun(pixels.reshape(QVGA.shape), spin)
