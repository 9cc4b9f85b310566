"""Pictures to train and to measure on: a folder of image files, or one .npz file.

An .npz file holds either `images`, uint8 [n, H, W, 3], or `jpeg` and `offset`: files one after another in one array of
bytes, file i at jpeg[offset[i]:offset[i + 1]].
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from modicum.data.samples import Samples
from modicum.errors import UnusableData

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})


def load_pictures(path: str | Path, side: int = 32) -> Tensor:
    """All pictures of a source, uint8 `[n, 3, side, side]`.

    Args:
        path: a folder, read with its subfolders in the order of their names, or an .npz file.
        side: pixels; other pictures are cut to a square around the middle and reduced.

    Raises:
        UnusableData: there is no such source, it is damaged, or it holds no pictures.
    """
    path = Path(path)
    try:
        found = _from_folder(path, side) if path.is_dir() else _from_archive(path, side)
    except (OSError, ValueError, KeyError, UnidentifiedImageError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UnusableData(
            f"{path} cannot be read as pictures: {reason}", "Give a folder of images or an .npz of images."
        ) from error
    if not found:
        raise UnusableData(f"{path} holds no pictures.", f"Put files there: {', '.join(sorted(SUFFIXES))}.")
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()


class Pictures(Samples):
    """Pictures as training data; half of them are seen in a mirror.

    Args:
        pictures: uint8 `[n, 3, side, side]`.
    """

    def __init__(self, pictures: Tensor) -> None:
        self.pictures, self.count = pictures, len(pictures)

    def rows(self, rows: Tensor, generator: torch.Generator, epoch: int) -> dict[str, Tensor]:
        """uint8 `pictures` `[size, 3, side, side]`."""
        chosen = self.pictures[rows]
        mirrored = torch.rand(len(rows), 1, 1, 1, generator=generator) < 0.5
        return {"pictures": torch.where(mirrored, chosen.flip(-1), chosen)}


def _from_folder(folder: Path, side: int) -> list[np.ndarray]:
    files = (file for file in sorted(folder.rglob("*")) if file.suffix.lower() in SUFFIXES)
    return _squares((Image.open(file) for file in files), side)


def _from_archive(file: Path, side: int) -> list[np.ndarray]:
    with np.load(file, allow_pickle=False) as arrays:
        if "images" in arrays:
            return _squares((Image.fromarray(image) for image in arrays["images"]), side)
        data, offset = arrays["jpeg"], arrays["offset"].tolist()
    files = (io.BytesIO(data[start:end].tobytes()) for start, end in pairwise(offset))
    return _squares((Image.open(file) for file in files), side)


def _squares(images: Iterable[Image.Image], side: int) -> list[np.ndarray]:
    return [np.asarray(_square(image.convert("RGB"), side)) for image in images]


def _square(image: Image.Image, side: int) -> Image.Image:
    if image.size == (side, side):
        return image
    edge = min(image.size)
    left, top = ((length - edge) // 2 for length in image.size)
    return image.resize((side, side), Image.Resampling.BOX, box=(left, top, left + edge, top + edge))
