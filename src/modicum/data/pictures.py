"""Folders of pictures as training data: one subfolder per class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from modicum.errors import InvalidSetting, UnusableData

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


@dataclass(frozen=True)
class PictureFolder:
    """Pictures and their classes, by name.

    Attributes:
        files: sorted by class, then by path.
        labels: index of the class of every file.
        classes: names of the subfolders, sorted; empty if the pictures have no classes, which makes them class 0.
    """

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    @classmethod
    def of(cls, root: Path) -> PictureFolder:
        """Find the pictures under a folder, at any depth below its subfolders.

        Raises:
            UnusableData: no such folder, no picture in it, or pictures both beside and in subfolders.
        """
        if not root.is_dir():
            raise UnusableData(f"{root} is no folder.", "Give a folder with one subfolder per class.")
        classes = sorted(folder for folder in root.iterdir() if folder.is_dir() and _pictures(folder))
        loose = [file for file in sorted(root.iterdir()) if file.suffix.lower() in ENDINGS]
        if bool(classes) == bool(loose):
            found = "pictures both beside and in subfolders" if loose else "no picture"
            raise UnusableData(
                f"{root} holds {found}.", f"Give one subfolder per class ({', '.join(sorted(ENDINGS))})."
            )
        found_by_class = [_pictures(folder) for folder in classes] or [loose]
        labels = [index for index, files in enumerate(found_by_class) for _ in files]
        files = [file for files in found_by_class for file in files]
        return cls(tuple(files), tuple(labels), tuple(folder.name for folder in classes))


def read_picture(file: Path, size: int) -> Tensor:
    """The middle square of a picture at `size` pixels, float32 `[3, size, size]` in [-1, 1].

    Large pictures are first halved by averaging, then resized bicubically, as usual for ImageNet.

    Raises:
        InvalidSetting: the size is not positive.
        UnusableData: the file is no picture that can be read.
    """
    if size < 1:
        raise InvalidSetting(f"Pictures of {size} pixels cannot be made.", "Ask for 1 or more.")
    try:
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnusableData(f"{file} cannot be read as a picture.", "Remove or replace it.") from error
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    sides = (max(size, round(picture.width * scale)), max(size, round(picture.height * scale)))
    picture = picture.resize(sides, Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    square = np.array(picture.crop((left, top, left + size, top + size)))  # [size, size, 3]
    return torch.from_numpy(square).permute(2, 0, 1).float() / 127.5 - 1


def _pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS)
