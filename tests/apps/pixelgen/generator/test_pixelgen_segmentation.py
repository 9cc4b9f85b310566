"""A segmentation model of the smallest possible size, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from modicum.apps.pixelgen.generator import Segmenter, open_generator
from modicum.apps.pixelgen.generator.hub import model_directory
from modicum.apps.pixelgen.generator.segmentation import COLOURS
from modicum.errors import CheckpointError, InvalidSetting, UnsupportedModel

transformers = pytest.importorskip("transformers")
SIZES: dict[str, Any] = {
    "depths": [1] * 4, "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 16,
}  # fmt: skip


def _saved(folder: Path, classes: int) -> Path:
    torch.manual_seed(0)
    config = transformers.SegformerConfig(num_labels=classes, **SIZES)
    model = transformers.SegformerForSemanticSegmentation(config)
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    model.save_pretrained(folder)
    transformers.SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _saved(tmp_path_factory.mktemp("segmenter"), len(COLOURS))


def _frames() -> torch.Tensor:
    return torch.rand(2, 1, 40, 52, generator=torch.Generator().manual_seed(0))


def test_every_pixel_gets_the_colour_of_its_likeliest_class(directory: Path) -> None:
    segment, frames = Segmenter.load(directory), _frames()
    drawn = segment(frames)
    assert drawn.shape == (2, 3, 40, 52)
    seen = segment.processor(
        images=list((255 * frames).round().byte().expand(-1, 3, -1, -1)), return_tensors="pt"
    )
    with torch.no_grad():
        scores = segment.model(**seen).logits
    scores = torch.nn.functional.interpolate(scores, (40, 52), mode="bilinear")
    assert torch.equal(drawn, COLOURS[scores.argmax(1)].permute(0, 3, 1, 2))
    assert len(drawn.permute(0, 2, 3, 1).flatten(0, 2).unique(dim=0)) > 2
    assert not torch.equal(drawn[0], drawn[1])


def test_the_colours_are_those_of_ade20k() -> None:
    code = (255 * COLOURS).round().int().tolist()
    assert len(code) == 150
    known = {0: [120, 120, 120], 2: [6, 230, 230], 4: [4, 200, 3], 6: [140, 140, 140], 149: [92, 0, 255]}
    assert {index: code[index] for index in known} == known  # wall, sky, tree, road, flag
    twins = {tuple(colour) for colour in code if code.count(colour) > 1}
    assert twins <= {(140, 140, 140)}  # road and skyscraper share one in the code itself


def test_other_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="7 classes"):
        Segmenter.load(_saved(tmp_path / "seven", 7))


def test_what_is_no_segmenter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no semantic segmentation model"):
        Segmenter.load(tmp_path)


def test_a_segmenter_for_a_generator_that_reads_none_is_refused(directory: Path) -> None:
    with pytest.raises(InvalidSetting, match="reads no segmentation"):
        open_generator("pixelgen-nano-small", segmenter=str(directory))


def test_the_network_is_used_only_if_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[bool] = []

    def snapshot_download(name: str, *, local_files_only: bool, **settings: Any) -> str:
        asked.append(local_files_only)
        if local_files_only:
            raise FileNotFoundError(name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match="neither a directory nor"):
        model_directory("some/model", "*.safetensors")
    assert model_directory("some/model", "*.safetensors", download=True) == tmp_path
    assert model_directory(tmp_path, "*.safetensors", download=True) == tmp_path
    assert asked == [True, False]


def test_a_name_that_cannot_be_fetched_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: Any, **settings: Any) -> str:
        raise OSError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(CheckpointError, match="could not be fetched: no connection"):
        model_directory("some/model", "*.safetensors", download=True)
