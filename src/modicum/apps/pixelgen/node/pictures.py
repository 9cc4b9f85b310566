"""Scenes to look at: uint8 `[rows, columns, 3]`, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from modicum.apps.pixelgen.modes import Bytes
from modicum.errors import DeviceUnavailable, MissingExtra, UnusableData

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm")
WEBCAM = "webcam"


def pictures(source: str | Path) -> Iterator[Bytes]:
    """Scenes, in RGB: an image over and over, the images of a folder in turn, a video or a webcam to its end.

    Args:
        source: a file, a folder, `webcam` or `webcam:1`.

    Raises:
        UnusableData: there is nothing to see.
        DeviceUnavailable: there is no such webcam.
        MissingExtra: a video or webcam without the package that reads it.
    """
    name, _, number = str(source).partition(":")
    if name == WEBCAM and (not number or number.isdecimal()):
        return _film(int(number or 0))
    path = Path(source)
    if path.suffix.lower() in VIDEOS and path.is_file():
        return _film(str(path))
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in IMAGES) if path.is_dir() else [path]
    if not files:
        raise UnusableData(f"{path} holds no images.", f"Give a folder with {', '.join(IMAGES[:4])} files.")
    first = read_image(files[0])  # what cannot be read is refused before anything is sent
    return _images(first, files)


def read_image(path: Path) -> Bytes:
    """One image file, uint8 `[rows, columns, 3]`.

    Raises:
        UnusableData: it is no image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UnusableData(f"{path} is not an image that can be read.", "Give a PNG or JPEG file.") from error


def _images(first: Bytes, files: list[Path]) -> Iterator[Bytes]:
    yield first
    if len(files) == 1:
        while True:
            yield first
    for file in cycle((*files[1:], files[0])):
        yield read_image(file)


def _film(source: int | str) -> Iterator[Bytes]:
    try:
        import cv2
    except ImportError as error:
        raise MissingExtra.of("opencv-python-headless", "video", "Reading a video or webcam") from error
    film = cv2.VideoCapture(source)
    if not film.isOpened():
        if isinstance(source, int):
            raise DeviceUnavailable(f"There is no webcam {source}.", "Give an image or a folder instead.")
        raise UnusableData(f"{source} is not a video that can be read.", "Give an MP4 file.")
    return _shots(film)


def _shots(film: Any) -> Iterator[Bytes]:
    try:
        while True:
            there, shot = film.read()
            if not there:
                return
            yield shot[..., ::-1]  # the package gives blue first
    finally:
        film.release()
