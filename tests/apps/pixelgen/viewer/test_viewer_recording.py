from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from modicum.apps.pixelgen.gateway import CompletedFrame
from modicum.apps.pixelgen.viewer import recording
from modicum.apps.pixelgen.viewer.painting import Painter
from modicum.apps.pixelgen.viewer.recording import SEGMENT, Recorder

Frames = Callable[..., CompletedFrame]


def played(file: Path) -> list[int]:
    """Milliseconds of every frame; fails unless all of them can be decoded."""
    shown = []
    with Image.open(file) as film:
        for number in range(film.n_frames):  # type: ignore[attr-defined]
            film.seek(number)
            film.load()
            shown.append(int(film.info["duration"]))
    return shown


def test_segments_play_after_every_frame_and_join(
    tmp_path: Path, painter: Painter, completed: Frames
) -> None:
    recorder = Recorder(tmp_path)
    recorder.add(painter.paint(completed(0)))
    assert recorder.joined() is None  # it was not on
    recorder.start()
    for number in range(SEGMENT + 2):
        recorder.add(painter.paint(completed(number, time=2.0 * number)))
        assert sum(len(played(file)) for file in recorder.segments()) == number + 1
    recorder.stop()
    recorder.add(painter.paint(completed(99)))
    assert [len(played(file)) for file in recorder.segments()] == [SEGMENT, 2]
    assert recorder.state() == {"on": False, "frames": SEGMENT + 2}
    whole = recorder.joined()
    assert whole is not None
    assert played(whole) == [1000] + [2000] * (SEGMENT + 1)
    assert Image.open(whole).size == (3 * 162, 122 + 18)


def test_what_was_written_survives_a_death_in_the_middle(
    tmp_path: Path, painter: Painter, completed: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path)
    recorder.start()
    for number in range(3):
        recorder.add(painter.paint(completed(number)))
    save = Image.Image.save

    def dying(image: Image.Image, file: object, *arguments: object, **settings: object) -> None:
        save(image, file, *arguments, **settings)  # type: ignore[arg-type]
        file.truncate(100)  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        recorder.add(painter.paint(completed(3)))
    (file,) = recorder.segments()
    assert len(played(file)) == 3


def test_a_new_recording_does_not_touch_the_old_one(
    tmp_path: Path, painter: Painter, completed: Frames
) -> None:
    recorder, runs = Recorder(tmp_path), []
    for _ in range(2):
        recorder.start()
        recorder.start()  # goes on
        recorder.add(painter.paint(completed(0)))
        recorder.stop()
        runs.append(recorder.segments())
    assert len({file for run in runs for file in run}) == 2
    assert all(file.exists() for run in runs for file in run)


def test_a_recording_ends_by_itself(
    tmp_path: Path, painter: Painter, completed: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "LONGEST", 2)
    recorder = Recorder(tmp_path)
    recorder.start()
    for number in range(4):
        recorder.add(painter.paint(completed(number)))
    assert recorder.state() == {"on": False, "frames": 2}
