"""Folders of pictures: classes by name, the middle square at any size, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modicum.data.pictures import PictureFolder, read_picture
from modicum.errors import InvalidSetting, UnusableData

SIDES = st.integers(1, 70)


def write(file: Path, pixels: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return file


@settings(max_examples=40, deadline=None)
@given(height=SIDES, width=SIDES, size=st.integers(1, 40))
def test_any_picture_becomes_a_square(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, size: int
) -> None:
    file = write(
        tmp_path_factory.getbasetemp() / "any.png", np.full((height, width, 3), (255, 0, 51), dtype=np.uint8)
    )
    found = read_picture(file, size)
    assert found.shape == (3, size, size)
    torch.testing.assert_close(
        found, torch.tensor([1.0, -1.0, -0.6]).view(3, 1, 1).expand_as(found), atol=1e-6, rtol=0
    )


def test_the_middle_is_kept_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 20, 3), dtype=np.uint8)
    found = read_picture(write(tmp_path / "wide.png", pixels), 8)
    expected = torch.from_numpy(pixels[:, 6:14]).permute(2, 0, 1).float() / 127.5 - 1
    torch.testing.assert_close(found, expected)


def test_grey_pictures_get_three_channels(tmp_path: Path) -> None:
    found = read_picture(write(tmp_path / "grey.png", np.arange(64, dtype=np.uint8).reshape(8, 8)), 8)
    assert (found[0] == found[1]).all()
    assert found.unique().numel() == 64


def test_classes_follow_the_names_of_the_subfolders(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    for name in ("b/1.png", "a/deep/2.PNG", "a/1.png"):
        write(tmp_path / name, pixels)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "x.txt").write_text("no picture")
    folder = PictureFolder.of(tmp_path)
    assert folder.classes == ("a", "b")
    assert folder.labels == (0, 0, 1)
    assert [file.name for file in folder.files] == ["1.png", "2.PNG", "1.png"]


def test_what_is_no_folder_of_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableData, match="no folder"):
        PictureFolder.of(tmp_path / "missing")
    with pytest.raises(UnusableData, match="no picture"):
        PictureFolder.of(tmp_path)
    file = write(tmp_path / "1.png", np.zeros((4, 4, 3), dtype=np.uint8))
    assert PictureFolder.of(tmp_path).labels == (0,)
    write(tmp_path / "a" / "1.png", np.zeros((4, 4, 3), dtype=np.uint8))
    with pytest.raises(UnusableData, match="both beside and in subfolders"):
        PictureFolder.of(tmp_path)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UnusableData, match=r"1\.png cannot be read"):
        read_picture(file, 4)
    with pytest.raises(InvalidSetting, match="0 pixels"):
        read_picture(tmp_path / "a" / "1.png", 0)
