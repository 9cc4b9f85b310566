"""Where the scalar readings come from: a script, the picture, or a recorded table."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from modicum.apps.pixelgen.readings import Readings
from modicum.errors import UnusableData

COLUMNS = ("Temperature", "Humidity", "Pressure", "Lux")
"""As the published reader writes them."""
BRIGHT_LUX = 20_000.0


class Sensors(Protocol):
    """Anything that can be read once per frame."""

    def read(self, light: NDArray[np.float32]) -> Readings:
        """The readings now; `light` is the scene in front of the camera, `[H, W]` in 0..1."""


class Scripted:
    """Readings from a list, over and over.

    Args:
        script: at least one.
    """

    def __init__(self, script: Sequence[Readings]) -> None:
        self._next = cycle(script)

    def read(self, light: NDArray[np.float32]) -> Readings:
        """The next of the list."""
        return next(self._next)


class FromPicture:
    """Light only, from the picture itself.

    Args:
        gain: lux of a white scene.
    """

    def __init__(self, gain: float = BRIGHT_LUX) -> None:
        self.gain = gain

    def read(self, light: NDArray[np.float32]) -> Readings:
        """Lux as the mean of the scene times the gain; the rest is unknown."""
        return Readings(lux=float(light.mean()) * self.gain)


def from_table(path: Path) -> Scripted:
    """Readings from a CSV file with some of the columns Temperature, Humidity, Pressure, Lux; empty is unknown.

    Raises:
        UnusableData: no such file, no such columns, no rows, or a value that is no number.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UnusableData(f"{path} cannot be read as a table.", "Give a CSV file.") from error
    if not rows or not set(COLUMNS) & set(rows[0]):
        raise UnusableData(f"{path} has no readings.", f"Its first line names columns: {', '.join(COLUMNS)}.")
    return Scripted([_row(path, line, row) for line, row in enumerate(rows, start=2)])


def _row(path: Path, line: int, row: dict[str, str | None]) -> Readings:
    values = {name.lower(): _number(path, line, row.get(name)) for name in COLUMNS}
    return Readings(**values)


def _number(path: Path, line: int, text: str | None) -> float | None:
    if text is None or text.strip() in ("", "None"):  # what the published reader writes for a missing value
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UnusableData(f"{path}, line {line}: {text!r} is not a number.", "Leave unknown values empty.")
    return value
