from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from modicum.apps.pixelgen.generator import Generator, open_generator, save
from modicum.apps.pixelgen.generator.images import Pictures, load_pictures
from modicum.errors import CheckpointError, InvalidSetting, OutputExists, UnknownName, UnusableData


def test_a_saved_generator_paints_the_same(small: Generator, tmp_path: Path) -> None:
    small.steps, small.temperature = 3, 0.25
    opened = Generator.load(save(small, tmp_path / "out", half=False))
    frames, mask = torch.rand(1, 1, 32, 32), torch.ones(1, 1, 32, 32, dtype=torch.bool)
    told = torch.ones(1, 5, dtype=torch.int64)
    painted = opened.generate(frames, mask, told), small.generate(frames, mask, told)
    torch.testing.assert_close(*painted, atol=1e-4, rtol=0)
    assert (opened.steps, opened.temperature) == (3, 0.25)
    with pytest.raises(OutputExists):
        save(small, tmp_path / "out")


def test_half_precision_halves_the_file(small: Generator, tmp_path: Path) -> None:
    sizes = [
        (save(small, tmp_path / str(half), half=half) / "model.safetensors").stat().st_size for half in (0, 1)
    ]
    assert sizes[1] < 0.55 * sizes[0]


def _broken_config(directory: Path, **changes: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_what_is_no_generator_is_refused(small: Generator, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="no generator named"):
        open_generator("pixelgen-giant")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Generator.load(tmp_path)
    out = save(small, tmp_path / "out")
    _broken_config(out, model_type="dit")
    with pytest.raises(CheckpointError, match="another kind"):
        Generator.load(out)
    _broken_config(out, model_type="pixelgen", depth=3)
    with pytest.raises(CheckpointError, match=r"missing: blocks\.2"):
        Generator.load(out)
    _broken_config(out, depth=2, painting={"paths": 3})
    with pytest.raises(CheckpointError, match="damaged"):
        Generator.load(out)
    _broken_config(out, painting={}, patch_size=5)
    with pytest.raises(InvalidSetting, match="patch_size"):
        Generator.load(out)


def test_a_damaged_weight_file_is_named(small: Generator, tmp_path: Path) -> None:
    out = save(small, tmp_path / "out")
    file = out / "model.safetensors"
    tensors = load_file(file)
    save_file({name: value for name, value in tensors.items() if "qkv" not in name}, file)
    with pytest.raises(CheckpointError, match="missing"):
        Generator.load(out)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        Generator.load(out)


def _jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    return file.getvalue()


def test_pictures_of_a_folder_are_cut_to_squares_and_reduced(tmp_path: Path) -> None:
    image = np.zeros((64, 96, 3), dtype=np.uint8)
    image[:, 16:80] = 200  # what is left of the middle square
    (tmp_path / "deep").mkdir()
    Image.fromarray(image).save(tmp_path / "deep" / "a.png")
    Image.fromarray(image[:32, :32]).save(tmp_path / "b.bmp")
    (tmp_path / "notes.txt").write_text("no picture")
    found = load_pictures(tmp_path)
    assert found.shape == (2, 3, 32, 32)
    assert (found[1] == 200).all()
    assert torch.equal(found[0].permute(1, 2, 0), torch.from_numpy(image[:32, :32]))


def test_pictures_of_an_archive(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "raw.npz", images=images)
    assert torch.equal(load_pictures(tmp_path / "raw.npz").permute(0, 2, 3, 1), torch.from_numpy(images))
    files = [_jpeg(np.full((32, 32, 3), 40 * i, dtype=np.uint8)) for i in range(3)]
    offset = np.cumsum([0, *map(len, files)])
    np.savez(tmp_path / "jpeg.npz", jpeg=np.frombuffer(b"".join(files), dtype=np.uint8), offset=offset)
    found = load_pictures(tmp_path / "jpeg.npz").float().mean((1, 2, 3))
    torch.testing.assert_close(found, torch.tensor([0.0, 40.0, 80.0]), atol=1, rtol=0)


def test_what_holds_no_pictures_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", numbers=np.arange(3))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"not an image")
    (tmp_path / "empty").mkdir()
    for source in ("missing.npz", "other.npz", "broken"):
        with pytest.raises(UnusableData, match="cannot be read as pictures"):
            load_pictures(tmp_path / source)
    with pytest.raises(UnusableData, match="holds no pictures"):
        load_pictures(tmp_path / "empty")


def test_half_of_the_pictures_are_mirrored() -> None:
    pictures = torch.arange(32, dtype=torch.uint8).expand(400, 3, 32, 32)
    seen = Pictures(pictures).batches(400, seed=0)(0)["pictures"]
    assert 0.4 < (seen[:, 0, 0, 0] == 31).float().mean() < 0.6
