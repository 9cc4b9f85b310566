"""Recordings as GIF, in segments that stay playable whatever happens.

A GIF is complete only when it is closed, and a program can be killed before. So a recording is a folder of short GIFs:
after every frame the newest segment is written anew beside the old one and put in its place in one move. What is lost
by a kill is the frame that was being written. `joined` makes one file of them.

    recording-20260102-030405/000.gif    12 frames
                              001.gif    ...

Every frame holds all three pictures and says which colours are generated.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modicum.apps.pixelgen.viewer.painting import Painted

if TYPE_CHECKING:
    from PIL import Image

SEGMENT = 12
LONGEST = 600
"""Frames of a recording; then it ends by itself."""
CAPTION = "as received   |   generated colour   |   generated colour, readings and sound drawn in"
SHORTEST_MS, LONGEST_MS = 80, 3000


class Recorder:
    """Writes painted frames, while it is on. Its methods may be called from any thread.

    Args:
        folder: where recordings go; made when the first one begins.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._run: Path | None = None
        self._on, self._frames = False, 0
        self._segment: list[tuple[Image.Image, int]] = []
        self._last: float | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin a recording; goes on if one is running."""
        with self._lock:
            if not self._on:
                self._run = self._new_run()
                self._on, self._frames, self._segment, self._last = True, 0, [], None

    def stop(self) -> None:
        """End it; what is written stays."""
        with self._lock:
            self._on, self._segment = False, []

    def state(self) -> dict[str, Any]:
        """Whether it is on, and how many frames the newest recording has."""
        with self._lock:
            return {"on": self._on, "frames": self._frames}

    def add(self, painted: Painted) -> None:
        """One more frame, if it is on."""
        with self._lock:
            if not self._on or self._run is None:
                return
            if len(self._segment) == SEGMENT:
                self._segment = []
            now, last = painted.frame.time, self._last
            shown = int(np.clip(1000 * (now - last if last is not None else 1), SHORTEST_MS, LONGEST_MS))
            self._segment.append((strip(painted), shown))
            _write(self._run / f"{self._frames // SEGMENT:03}.gif", self._segment)
            self._frames, self._last = self._frames + 1, now
            self._on = self._frames < LONGEST

    def segments(self) -> list[Path]:
        """Files of the newest recording, in order."""
        return sorted(self._run.glob("[0-9]*.gif")) if self._run else []

    def joined(self) -> Path | None:
        """The newest recording as one file; None if nothing has been recorded."""
        files = self.segments()
        if not files or self._run is None:
            return None
        whole = self._run / "whole.gif"
        frames = _frames(files)
        first = next(frames)
        _save(whole, first, frames, [shown for _, shown in _durations(files)])
        return whole

    def _new_run(self) -> Path:
        name = time.strftime("recording-%Y%m%d-%H%M%S")
        for number in range(1000):
            run = self.folder / (f"{name}-{number}" if number else name)
            if not run.exists():
                break
        run.mkdir(parents=True)
        return run


def strip(painted: Painted) -> Image.Image:
    """The three pictures side by side, with a line that says what they are."""
    from PIL import Image, ImageDraw, ImageFont

    pictures = np.concatenate((painted.raw, painted.generated, painted.overlay), axis=1)
    font = ImageFont.load_default(11)
    whole = Image.new("RGB", (pictures.shape[1], pictures.shape[0] + 18), (13, 16, 20))
    whole.paste(Image.fromarray(pictures))
    ImageDraw.Draw(whole).text((6, pictures.shape[0] + 2), CAPTION, (200, 206, 214), font)
    return whole.quantize(128)


def _write(path: Path, segment: list[tuple[Image.Image, int]]) -> None:
    images = [image for image, _ in segment]
    _save(path, images[0], iter(images[1:]), [shown for _, shown in segment])


def _save(path: Path, first: Image.Image, others: Iterator[Image.Image], shown: list[int]) -> None:
    """Write beside, then move: a reader finds the old file or the new one."""
    beside = path.with_suffix(".part")
    with beside.open("wb") as file:
        first.save(file, "GIF", save_all=True, append_images=others, duration=shown, loop=0)
    os.replace(beside, path)


def _frames(files: list[Path]) -> Iterator[Image.Image]:
    from PIL import Image, ImageSequence

    for file in files:
        with Image.open(file) as film:
            for frame in ImageSequence.Iterator(film):
                yield frame.convert("RGB").quantize(128)


def _durations(files: list[Path]) -> Iterator[tuple[Path, int]]:
    from PIL import Image, ImageSequence

    for file in files:
        with Image.open(file) as film:
            for frame in ImageSequence.Iterator(film):
                yield file, int(frame.info["duration"])
