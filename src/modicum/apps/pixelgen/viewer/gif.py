"""A recording as short GIFs. A GIF is complete only when it is closed, and a program can be killed before.

So after every frame the newest of them is written anew beside the old one and put in its place in one move. What is
lost by a kill is the frame that was being written.

    000.gif    12 frames
    001.gif    ...
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

SEGMENT = 12
COLOURS = 128


class Gif:
    """Segments of 12 frames.

    Args:
        folder: exists, and is empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._segments = folder, 0
        self._segment: list[tuple[Image.Image, int]] = []

    def add(self, image: Image.Image, gap: int) -> None:
        """One more frame, `gap` milliseconds after the one before."""
        if len(self._segment) % SEGMENT == 0:
            self._segment, self._segments = [], self._segments + 1
        self._segment.append((image.quantize(COLOURS), gap))
        images, shown = zip(*self._segment, strict=True)
        _save(self.folder / f"{self._segments - 1:03}.gif", images, list(shown))

    def close(self) -> None:
        """Nothing is open."""

    def files(self) -> list[Path]:
        """What is written, in order."""
        return sorted(self.folder.glob("[0-9]*.gif"))

    def joined(self) -> Path | None:
        """All segments as one file; None as long as there are none."""
        files = self.files()
        if not files:
            return None
        shown = [int(frame.info["duration"]) for frame in _frames(files)]
        whole = self.folder / "whole.gif"
        _save(whole, (frame.convert("RGB").quantize(COLOURS) for frame in _frames(files)), shown)
        return whole


def _save(path: Path, images: Iterable[Image.Image], shown: list[int]) -> None:
    """Write beside, then move: a reader finds the old file or the new one."""
    beside, rest = path.with_suffix(".part"), iter(images)
    with beside.open("wb") as file:
        next(rest).save(file, "GIF", save_all=True, append_images=rest, duration=shown, loop=0)
    os.replace(beside, path)


def _frames(files: list[Path]) -> Iterator[Image.Image]:
    from PIL import Image, ImageSequence

    for file in files:
        with Image.open(file) as film:
            yield from ImageSequence.Iterator(film)
