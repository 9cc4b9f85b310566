"""Frames of random pixels, and gateways whose clock is moved by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

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
