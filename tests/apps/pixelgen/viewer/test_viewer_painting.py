from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from modicum.apps.pixelgen.demo.scene import Motor, Shore
from modicum.apps.pixelgen.energy import RGB_CAMERAS, EnergyModel
from modicum.apps.pixelgen.gateway import CompletedFrame
from modicum.apps.pixelgen.generator import DEFAULT, open_generator
from modicum.apps.pixelgen.readings import Readings
from modicum.apps.pixelgen.viewer.facts import facts
from modicum.apps.pixelgen.viewer.painting import UNKNOWN, Painter, developed

Frames = Callable[..., CompletedFrame]
LUMA = np.array((0.299, 0.587, 0.114))


def test_raw_is_what_was_measured_and_nothing_else(painter: Painter, completed: Frames) -> None:
    frame = completed(0)
    raw = painter.paint(frame).raw
    assert np.array_equal(raw[frame.mask], np.repeat(frame.frame[frame.mask][:, None], 3, 1))
    assert (raw[~frame.mask] == UNKNOWN).all()


def test_developing_keeps_the_order_and_the_ends() -> None:
    curve = developed(np.arange(256, dtype=np.uint8))
    assert (curve[0], curve[255]) == (0, pytest.approx(1))
    assert (np.diff(curve) > 0).all()
    assert curve[55] == pytest.approx(0.5, abs=0.01)  # a fifth of the light looks half as bright


def test_the_shipped_generator_keeps_measured_brightness(completed: Frames) -> None:
    frame = completed(0)
    painted = Painter(open_generator(), DEFAULT).paint(frame)
    luma = painted.generated / 255 @ LUMA
    assert np.abs(luma - developed(frame.frame))[frame.mask].max() < 0.01
    assert np.ptp(painted.generated.astype(int), axis=-1).max() > 4  # there is colour


def test_readings_reach_the_overlay_and_not_the_raw_frame(painter: Painter, completed: Frames) -> None:
    cold = completed(0, readings=Readings(temperature=-10.0))
    hot = replace(cold, readings=Readings(temperature=40.0))
    loud = replace(cold, readings=Readings(temperature=-10.0, level=80.0, frequency=440.0))
    pictures = [painter.paint(frame) for frame in (cold, hot, loud)]
    assert len({p.raw.tobytes() for p in pictures}) == 1
    assert len({p.overlay.tobytes() for p in pictures}) == 3
    assert pictures[0].direction is None


@pytest.mark.parametrize("first", [12, 30, 45, 58])
def test_the_sound_is_found_at_the_boat(completed: Frames, painter: Painter, first: int) -> None:
    shore = Shore(first=first)
    next(shore)
    painter.hear = Motor(shore).around
    direction = painter.paint(completed(0)).direction
    assert direction == pytest.approx(shore.boat, abs=0.04)


def test_facts(painter: Painter, completed: Frames) -> None:
    frame, model = completed(3), EnergyModel()
    known = facts(painter.paint(frame), "grey", model)
    assert known["lost"] == {"pixels": (~frame.mask).sum(), "share": pytest.approx((~frame.mask).mean())}
    assert known["cost"]["basis"] == known["cost"]["energy"]["basis"] == "model"
    assert [c["total"] for c in known["cost"]["cameras"]] == [
        pytest.approx(model.rgb_frame(camera, 2.0).total) for camera in RGB_CAMERAS
    ]
    assert all(camera["total"] > known["cost"]["energy"]["total"] for camera in known["cost"]["cameras"])
    assert "Measured" in known["provenance"]["raw"]
    assert all("Generated colour" in known["provenance"][name] for name in ("generated", "overlay"))
    wired = facts(painter.paint(completed(3, energy=None)), "grey", model)
    assert wired["cost"]["energy"] is wired["cost"]["cell_days"] is None


def test_a_day_at_the_shore() -> None:
    noon, later, midnight = (next(Shore(first=frame)) for frame in (22, 23, 67))
    assert noon.shape == (366, 486, 3)
    assert noon.mean() > 2 * midnight.mean()
    assert not np.array_equal(noon, later)
    assert np.array_equal(next(Shore(3)), next(Shore(3)))
