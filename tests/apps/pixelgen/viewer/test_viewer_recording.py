from __future__ import annotations

import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from modicum.apps.pixelgen.gateway import CompletedFrame
from modicum.apps.pixelgen.viewer import recording
from modicum.apps.pixelgen.viewer.gif import SEGMENT
from modicum.apps.pixelgen.viewer.mp4 import KEY
from modicum.apps.pixelgen.viewer.painting import Painter
from modicum.apps.pixelgen.viewer.recording import CAPTION_HEIGHT, Kind, Recorder, strip
from modicum.errors import MissingExtra

from .films import played, times

Frames = Callable[..., CompletedFrame]
BOTH = pytest.mark.parametrize("kind", ["mp4", "gif"])
SIZE = (3 * 162, 122 + CAPTION_HEIGHT)


def brightness(file: Path) -> list[NDArray[np.float64]]:
    """Every frame in grey, float64 [H, W]."""
    if file.suffix == ".gif":
        with Image.open(file) as film:
            shown = range(film.n_frames)  # type: ignore[attr-defined]
            return [np.asarray(_at(film, number), float) for number in shown]
    with av.open(file) as film:
        return [frame.to_ndarray(format="gray").astype(float) for frame in film.decode(video=0)]


def _at(film: Image.Image, number: int) -> Image.Image:
    film.seek(number)
    return film.convert("L")


def test_gif_segments_play_after_every_frame_and_join(
    tmp_path: Path, painter: Painter, completed: Frames
) -> None:
    recorder = Recorder(tmp_path, "gif")
    recorder.add(painter.paint(completed(0)))
    assert recorder.joined() is None  # it was not on
    recorder.start()
    for number in range(SEGMENT + 2):
        recorder.add(painter.paint(completed(number, time=2.0 * number)))
        assert sum(len(played(file)) for file in recorder.files()) == number + 1
    recorder.stop()
    recorder.add(painter.paint(completed(99)))
    assert [len(played(file)) for file in recorder.files()] == [SEGMENT, 2]
    assert recorder.state() == {"on": False, "frames": SEGMENT + 2, "kind": "gif"}
    whole = recorder.joined()
    assert whole is not None
    assert played(whole) == [1000] + [2000] * (SEGMENT + 1)
    assert Image.open(whole).size == SIZE


def test_what_was_written_of_a_gif_survives_a_death_in_the_middle(
    tmp_path: Path, painter: Painter, completed: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path, "gif")
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
    (file,) = recorder.files()
    assert len(played(file)) == 3


def test_an_mp4_plays_while_it_is_written_with_the_times_of_its_frames(
    tmp_path: Path, painter: Painter, completed: Frames
) -> None:
    recorder = Recorder(tmp_path, "mp4")
    recorder.start()
    assert recorder.joined() is None
    arrivals = [0.0, 0.5, 0.51, 2.5, 60.0, *(61.0 + number for number in range(KEY))]
    gaps = [0, 500, 80, 1990, 3000, *[1000] * KEY]  # never shorter than 80 ms, nor longer than three seconds
    due = list(np.cumsum(gaps) / 1000)
    for number, arrival in enumerate(arrivals):
        recorder.add(painter.paint(completed(number, time=arrival)))
        (file,) = recorder.files()
        assert times(file) == due[:number]  # all but the newest
    whole = recorder.joined()
    assert whole is not None
    assert times(whole) == due[:-1]  # what a page may fetch while the recording goes on
    recorder.stop()
    assert times(file) == times(recorder.joined() or file) == due
    with av.open(whole) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", *SIZE)
        film.seek(int(due[-1] / stream.time_base), stream=stream)
        first = next(iter(film.decode(video=0)))
        assert first.key_frame
        assert first.pts * (first.time_base or Fraction()) > 0  # jumped
    assert whole.read_bytes().index(b"moov") < whole.read_bytes().index(b"mdat")  # plays while it is fetched


def test_a_node_that_changes_its_mode_does_not_break_the_film(
    tmp_path: Path, painter: Painter, completed: Frames, frame: NDArray[np.uint8]
) -> None:
    recorder = Recorder(tmp_path, "mp4")
    recorder.start()
    large = {"frame": frame, "mask": np.ones_like(frame, bool)}
    recorder.add(painter.paint(completed(0)))
    painted = painter.paint(CompletedFrame(**{**vars(completed(1)), **large}))
    recorder.add(painted)
    recorder.stop()
    first, second = brightness(recorder.files()[0])
    assert first.shape == second.shape == SIZE[::-1]
    expected = np.asarray(strip(painted).resize(SIZE).convert("L"), float)
    assert np.abs(second - expected).mean() < 8


@BOTH
def test_every_frame_says_what_is_generated(
    tmp_path: Path, painter: Painter, completed: Frames, kind: Kind
) -> None:
    recorder = Recorder(tmp_path, kind)
    recorder.start()
    for number in range(KEY + 2):
        recorder.add(painter.paint(completed(number, time=float(number))))
    recorder.stop()
    caption = np.asarray(strip(painter.paint(completed(0))).convert("L"), float)[-CAPTION_HEIGHT:]
    blank = np.full_like(caption, caption[-1, -1])
    for file in [*recorder.files(), recorder.joined() or tmp_path]:
        for shown in brightness(file):
            badge = shown[-CAPTION_HEIGHT:]
            assert np.abs(badge - caption).mean() < np.abs(badge - blank).mean() / 3
            assert np.corrcoef(badge.ravel(), caption.ravel())[0, 1] > 0.95


@BOTH
def test_a_new_recording_does_not_touch_the_old_one(
    tmp_path: Path, painter: Painter, completed: Frames, kind: Kind
) -> None:
    recorder, runs = Recorder(tmp_path, kind), []
    for _ in range(2):
        recorder.start()
        recorder.start()  # goes on
        recorder.add(painter.paint(completed(0)))
        recorder.stop()
        recorder.stop()
        runs.append(recorder.files())
    assert len({file for run in runs for file in run}) == 2
    assert all(len(times(file)) == 1 for run in runs for file in run)


@BOTH
def test_a_recording_ends_by_itself(
    tmp_path: Path, painter: Painter, completed: Frames, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    monkeypatch.setattr(recording, "LONGEST", 2)
    recorder = Recorder(tmp_path, kind)
    recorder.start()
    for number in range(4):
        recorder.add(painter.paint(completed(number)))
    assert recorder.state() == {"on": False, "frames": 2, "kind": kind}
    (file,) = recorder.files()
    assert len(times(file)) == 2


def test_mp4_where_it_can_be_encoded_else_gif(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Recorder(tmp_path).kind == "mp4"
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})  # PyAV without libx264
    assert Recorder(tmp_path).kind == "gif"
    monkeypatch.setitem(sys.modules, "av", None)
    assert Recorder(tmp_path).kind == "gif"
    assert Recorder(tmp_path, "gif").kind == "gif"
    with pytest.raises(MissingExtra, match="av"):
        Recorder(tmp_path, "mp4")
