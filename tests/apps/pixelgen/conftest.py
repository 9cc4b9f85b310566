"""Frames of random pixels, a clock that is moved by hand, processes, and serial lines."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from modicum.apps.pixelgen.modes import MODES


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def frame() -> NDArray[np.uint8]:
    """Random pixels, uint8 [244, 324]."""
    return np.random.default_rng(0).integers(0, 256, MODES[0].shape, dtype=np.uint8)


@pytest.fixture(scope="session")
def photo() -> NDArray[np.uint8]:
    """A smooth colour picture, uint8 [480, 640, 3]."""
    rows, columns = np.mgrid[0:480, 0:640] / 640
    waves = [np.sin(9 * rows + 4 * columns), np.cos(7 * columns), np.sin(5 * rows * columns + 1)]
    return (127.5 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)


@pytest.fixture
def scene(tmp_path: Path, photo: NDArray[np.uint8]) -> Path:
    """A photo as a file."""
    Image.fromarray(photo).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


@pytest.fixture
def started() -> Iterator[Any]:
    """`started(...)` runs `modicum pixelgen ...`; what still runs at the end is killed."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "modicum", "pixelgen", *map(str, arguments)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen(line, **pipes))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def wire() -> Iterator[tuple[str, str]]:
    """Names of two serial lines that are connected: pseudo-terminals with a thread between their masters."""
    ends = [pty.openpty() for _ in range(2)]
    for _, slave in ends:
        tty.setraw(slave)
    (left, _), (right, _) = ends
    stop = threading.Event()

    def carry() -> None:
        os.set_blocking(left, False)
        while not stop.is_set():
            try:
                os.write(right, os.read(left, 4096))
            except BlockingIOError:
                time.sleep(0.001)

    thread = threading.Thread(target=carry)
    thread.start()
    yield os.ttyname(ends[0][1]), os.ttyname(ends[1][1])
    stop.set()
    for _, slave in ends:  # lets a write that waits go on
        termios.tcflush(slave, termios.TCIFLUSH)
    thread.join(5)
    for end in ends:
        for descriptor in end:
            os.close(descriptor)
