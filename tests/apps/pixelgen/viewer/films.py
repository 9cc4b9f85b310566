"""Recordings played again: whatever cannot be decoded fails."""

from __future__ import annotations

from pathlib import Path

import av
from PIL import Image


def played(file: Path) -> list[int]:
    """Milliseconds of every frame of a GIF."""
    shown = []
    with Image.open(file) as film:
        for number in range(film.n_frames):  # type: ignore[attr-defined]
            film.seek(number)
            film.load()
            shown.append(int(film.info["duration"]))
    return shown


def times(file: Path) -> list[float]:
    """Seconds from the beginning at which every frame is shown."""
    if file.suffix == ".gif":
        shown = played(file)
        return [sum(shown[:number]) / 1000 for number in range(len(shown))]
    with av.open(file) as film:
        return [round(frame.time, 3) for frame in film.decode(video=0) if frame.time is not None]
