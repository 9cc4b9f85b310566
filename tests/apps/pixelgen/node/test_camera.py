from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from modicum.apps.pixelgen.modes import MODES, QQVGA, QVGA, Mode
from modicum.apps.pixelgen.node.camera import (
    LONGEST,
    SHORTEST,
    TARGET,
    Camera,
    CameraSettings,
    area_weights,
    vignette,
)
from modicum.apps.pixelgen.node.pictures import pictures
from modicum.errors import DeviceUnavailable, MissingExtra, UnusableData

Picture = NDArray[np.uint8]


def still(**settings: Any) -> Camera:
    """A camera without noise and with a perfect lens."""
    return Camera(CameraSettings(**{"corners": 1.0, "read_noise": 0.0, **settings}))


@given(st.integers(1, 60), st.integers(1, 60))
def test_resizing_keeps_means(inputs: int, outputs: int) -> None:
    weights = area_weights(inputs, outputs)
    assert weights.shape == (outputs, inputs)
    assert np.allclose(weights.sum(1), 1, atol=1e-5)
    assert np.allclose(weights.sum(0), outputs / inputs, atol=1e-5)
    assert (weights >= 0).all()


def test_resizing_by_whole_numbers_is_the_mean_of_blocks() -> None:
    values = np.random.default_rng(0).random(30)
    assert np.allclose(area_weights(30, 10) @ values, values.reshape(10, 3).mean(1), atol=1e-6)
    assert np.allclose(area_weights(30, 30) @ values, values, atol=1e-6)


def test_light_is_linear_luma_of_the_middle() -> None:
    picture = np.zeros((488, 800, 3), np.uint8)
    picture[:, 76:724] = 10, 200, 90  # exactly 324:244, the sides are cut off
    expected = np.dot((np.array([10, 200, 90]) / 255) ** 2.2, [0.299, 0.587, 0.114])
    light = still().light(picture)
    assert light.shape == QVGA.shape
    assert np.allclose(light, expected, atol=1e-5)


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
def test_frames_have_the_size_of_the_mode(photo: Picture, mode: Mode) -> None:
    camera = Camera(CameraSettings(mode=mode))
    frame = camera.expose(camera.light(photo))
    assert frame.shape == mode.shape
    assert frame.dtype == np.uint8
    tall = camera.light(np.ascontiguousarray(photo.transpose(1, 0, 2)))
    assert tall.shape == mode.shape
    assert camera.light(photo[:1, :1]).shape == mode.shape


@pytest.mark.parametrize("brightness", [1.0, 0.3, 0.1])
def test_the_exposure_settles_within_ten_frames(photo: Picture, brightness: float) -> None:
    camera = Camera()
    dimmed = (photo * brightness).astype(np.uint8)
    assert camera.boot(dimmed) <= 10
    assert camera.settled
    frame = camera.expose(camera.light(dimmed))
    assert abs(frame.mean() - TARGET) <= 7
    assert camera.boot(dimmed) == 0


def test_what_is_too_dark_or_too_bright_ends_at_a_limit(photo: Picture) -> None:
    dark, bright = Camera(), Camera()
    assert dark.boot(np.zeros_like(photo)) == 10
    assert not dark.settled
    assert dark.exposure == LONGEST
    for _ in range(20):
        bright.expose(np.full(QVGA.shape, 1e6, np.float32))
    assert bright.exposure == SHORTEST


def test_the_exposure_has_play() -> None:
    camera = still()
    grey = np.full(QVGA.shape, 0.2, np.float32)
    while not camera.settled:
        camera.expose(grey)
    rest = camera.exposure
    camera.expose(grey * (TARGET + 12) / TARGET)  # off by more than 7, less than 15
    assert camera.exposure == rest
    camera.expose(grey * (TARGET + 20) / TARGET)
    assert camera.exposure < rest


def test_vignette_and_noise() -> None:
    lens = vignette(QVGA.shape, 0.6)
    assert np.allclose(lens[[0, 0, -1, -1], [0, -1, 0, -1]], 0.6, atol=1e-6)
    assert lens.max() == pytest.approx(1, abs=1e-3)
    assert np.array_equal(lens, lens[::-1, ::-1])
    assert (vignette(QVGA.shape, 1.0) == 1).all()
    grey = np.full(QVGA.shape, 0.15, np.float32)
    shadowed = still(corners=0.6).expose(grey)
    assert shadowed[0, 0] == pytest.approx(0.6 * shadowed.max(), abs=1)
    quiet, noisy = still(read_noise=0.0), still(read_noise=3.0)
    assert len(np.unique(quiet.expose(grey))) == 1
    assert noisy.expose(grey).std() == pytest.approx(3, rel=0.02)


def test_same_seed_same_frame(photo: Picture) -> None:
    first, second, other = (Camera(seed=seed) for seed in (3, 3, 4))
    frames = [camera.expose(camera.light(photo)) for camera in (first, second, other)]
    assert np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[0], frames[2])


def test_images_and_folders(tmp_path: Path, photo: Picture) -> None:
    for index, name in enumerate(("b.png", "a.jpg", "c.txt")):
        Image.fromarray(np.full((8, 9, 3), 50 * index, np.uint8)).save(tmp_path / name, "png")
    Image.new("L", (4, 4), 9).save(tmp_path / "d.bmp")
    one = pictures(tmp_path / "b.png")
    assert [int(next(one).max()) for _ in range(3)] == [0, 0, 0]
    turn = pictures(str(tmp_path))
    assert [int(next(turn).max()) for _ in range(5)] == [50, 0, 9, 50, 0]
    assert next(pictures(tmp_path / "d.bmp")).shape == (4, 4, 3)


def test_nothing_to_see(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    for source in (tmp_path / "none.png", tmp_path / "text.png", tmp_path):
        with pytest.raises(UnusableData):
            pictures(source)
    (tmp_path / "text.png").unlink()
    with pytest.raises(UnusableData, match="no images"):
        pictures(tmp_path)


class _Film:
    """What the video package shows of a film: three shots, blue first."""

    def __init__(self, source: object) -> None:
        self.left, self.source, self.released = 3, source, False

    def isOpened(self) -> bool:
        return self.source != 7 and self.source is not None

    def read(self) -> tuple[bool, Picture | None]:
        self.left -= 1
        shot = np.zeros((2, 2, 3), np.uint8)
        shot[..., 0] = 200
        return (True, shot) if self.left >= 0 else (False, None)

    def release(self) -> None:
        self.released = True


def test_videos_and_webcams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "film.mp4").touch()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtra, match=r"modicum\[video\]"):
        pictures(tmp_path / "film.mp4")
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(VideoCapture=_Film))
    shots = list(pictures(tmp_path / "film.mp4"))
    assert len(shots) == 3
    assert shots[0][0, 0].tolist() == [0, 0, 200]  # red first
    assert len(list(pictures("webcam"))) == 3
    with pytest.raises(DeviceUnavailable, match="webcam 7"):
        pictures("webcam:7")


def test_a_bright_day_and_a_night_differ_in_lux_only_by_the_scene(photo: Picture) -> None:
    light = still(mode=QQVGA).light(photo)
    assert light.mean() == pytest.approx(still().light(photo).mean(), rel=1e-4)
