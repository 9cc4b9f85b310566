"""Recordings that stay playable whatever happens, as MP4 (`mp4.py`) or GIF (`gif.py`).

Every recording is a folder of its own. Every frame of it holds all three pictures and says which colours are
generated, so that it cannot be passed on without that.

    recording-20260102-030405/film.mp4
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from modicum.apps.pixelgen.viewer.gif import Gif
from modicum.apps.pixelgen.viewer.mp4 import Mp4, can_encode
from modicum.apps.pixelgen.viewer.painting import Painted
from modicum.errors import MissingExtra

if TYPE_CHECKING:
    from PIL import Image

Kind = Literal["mp4", "gif"]
LONGEST = 600
"""Frames of a recording; then it ends by itself."""
CAPTION = "as received   |   generated colour   |   generated colour, readings and sound drawn in"
CAPTION_HEIGHT = 18
SHORTEST_MS, LONGEST_MS, FIRST_MS = 80, 3000, 1000


class Film(Protocol):
    """Takes the frames of one recording; what it was given before can be played after a kill."""

    def add(self, image: Image.Image, gap: int) -> None:
        """One more frame, `gap` milliseconds after the one before."""

    def close(self) -> None:
        """End it."""

    def files(self) -> list[Path]:
        """What is written, in order."""

    def joined(self) -> Path | None:
        """All of it as one file for any player; None as long as there is nothing."""


class Recorder:
    """Writes painted frames, while it is on. Its methods may be called from any thread.

    Args:
        folder: where recordings go; made when the first one begins.
        kind: of the files; MP4 where it can be encoded by default, else GIF.

    Raises:
        MissingExtra: MP4 is asked for and cannot be encoded.
    """

    def __init__(self, folder: Path, kind: Kind | None = None) -> None:
        if kind == "mp4" and not can_encode():
            raise MissingExtra.of("av", "video", "Recording MP4")
        self.folder = folder
        self.kind: Kind = kind or ("mp4" if can_encode() else "gif")
        self._film: Film | None = None
        self._on, self._frames = False, 0
        self._last: float | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin a recording; goes on if one is running."""
        with self._lock:
            if not self._on:
                run = self._new_run()
                self._film = Mp4(run) if self.kind == "mp4" else Gif(run)
                self._on, self._frames, self._last = True, 0, None

    def stop(self) -> None:
        """End it; what is written stays."""
        with self._lock:
            self._end()

    def state(self) -> dict[str, Any]:
        """Whether it is on, how many frames the newest recording has, and of what kind it is."""
        with self._lock:
            return {"on": self._on, "frames": self._frames, "kind": self.kind}

    def add(self, painted: Painted) -> None:
        """One more frame, if it is on."""
        with self._lock:
            if not self._on or self._film is None:
                return
            now, last = painted.frame.time, self._last
            gap = FIRST_MS if last is None else int(np.clip(1000 * (now - last), SHORTEST_MS, LONGEST_MS))
            self._film.add(strip(painted), gap)
            self._frames, self._last = self._frames + 1, now
            if self._frames == LONGEST:
                self._end()

    def files(self) -> list[Path]:
        """Files of the newest recording, in order."""
        return self._film.files() if self._film else []

    def joined(self) -> Path | None:
        """The newest recording as one file; None if nothing has been recorded."""
        with self._lock:
            return self._film.joined() if self._film else None

    def _end(self) -> None:
        self._on = False
        if self._film:
            self._film.close()

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
    whole = Image.new("RGB", (pictures.shape[1], pictures.shape[0] + CAPTION_HEIGHT), (13, 16, 20))
    whole.paste(Image.fromarray(pictures))
    ImageDraw.Draw(whole).text((6, pictures.shape[0] + 2), CAPTION, (200, 206, 214), font)
    return whole
