"""Frames as a gateway hands them on, and a generator that costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from modicum.apps.pixelgen.energy import EnergyModel
from modicum.apps.pixelgen.gateway import CompletedFrame, Statistics
from modicum.apps.pixelgen.modes import QQVGA4
from modicum.apps.pixelgen.readings import Readings
from modicum.apps.pixelgen.viewer.broadcast import Broadcast
from modicum.apps.pixelgen.viewer.painting import Painter
from modicum.apps.pixelgen.viewer.recording import Recorder


class Grey:
    """Paints no colour."""

    def generate(self, frames: Tensor, mask: Tensor, tokens: Tensor, **settings: Any) -> Tensor:
        return frames.expand(-1, 3, -1, -1)


@pytest.fixture
def painter() -> Painter:
    return Painter(Grey(), "grey")  # type: ignore[arg-type]


@pytest.fixture
def completed() -> Callable[..., CompletedFrame]:
    """`completed(number)`: a random frame of which a quarter is lost."""

    def make(number: int, time: float = 0.0, **known: Any) -> CompletedFrame:
        random = np.random.default_rng(number)
        mask = random.random(QQVGA4.shape) < 0.75
        rest = {
            "readings": Readings(21.0, 40.0, None, 5000.0, 60.0, 440.0),
            "energy": EnergyModel().frame(QQVGA4.nbytes, 2.0),
            "sound": None,
        }
        return CompletedFrame(
            node=1,
            number=number,
            frame=random.integers(0, 256, QQVGA4.shape, dtype=np.uint8) * mask,
            mask=mask,
            statistics=Statistics(frames=number + 1),
            nbytes=7000,
            time=time,
            **{**rest, **known},
        )

    return make


@pytest.fixture
def broadcast(painter: Painter, tmp_path: Path, clock: Any) -> Broadcast:
    return Broadcast(painter, Recorder(tmp_path / "recordings"), clock)
