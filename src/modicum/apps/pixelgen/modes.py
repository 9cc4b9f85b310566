"""The sizes in which a node sends its picture. The sensor's "QVGA" is 324 x 244, not 320 x 240.

Legend: H rows, W columns. Row-major; in the 4-bit modes the earlier pixel is the upper half of a byte.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modicum.errors import UnknownName

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Mode:
    """One size and depth.

    Attributes:
        name: how a user names it.
        width: pixels per row.
        height: rows.
        bits: per pixel, 8 or 4.
    """

    name: str
    width: int
    height: int
    bits: int

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    @property
    def nbytes(self) -> int:
        """Bytes of a frame on the radio."""
        return self.width * self.height * self.bits // 8

    def pack(self, frame: Bytes) -> Bytes:
        """Pixels uint8 `[H, W]` to bytes uint8 `[nbytes]`; in 4-bit modes the lower half of each pixel is lost."""
        pixels = frame.reshape(-1)
        if self.bits == 8:
            return pixels
        return (pixels[0::2] & np.uint8(0xF0)) | (pixels[1::2] >> np.uint8(4))

    def unpack(self, data: Bytes) -> Bytes:
        """Bytes uint8 `[nbytes]` to pixels uint8 `[H, W]`; 4-bit values are spread over 0 to 255."""
        if self.bits == 4:
            data = np.stack((data >> 4, data & 0x0F), axis=-1) * np.uint8(17)  # [nbytes, 2]
        return data.reshape(self.shape)

    def mask(self, known: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which pixels `[H, W]` are known if these bytes `[nbytes]` are."""
        return np.repeat(known, 8 // self.bits).reshape(self.shape)


MODES = (
    Mode("qvga", 324, 244, 8),
    Mode("qqvga", 162, 122, 8),
    Mode("qvga4", 324, 244, 4),
    Mode("qqvga4", 162, 122, 4),
)
"""In the order of their number in a packet's flags."""

QVGA, QQVGA, QVGA4, QQVGA4 = MODES


def mode(name: str) -> Mode:
    """The mode of that name.

    Raises:
        UnknownName: there is none.
    """
    named = {mode.name: mode for mode in MODES}
    if name not in named:
        raise UnknownName.among("mode", name, named)
    return named[name]
