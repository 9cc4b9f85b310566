"""What the shipped generators promise on their cards, on photographs that they were not trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from modicum.apps.pixelgen.generator import Generator, locate, names
from modicum.apps.pixelgen.generator.colour import luma
from modicum.apps.pixelgen.generator.measure import baselines, lost_packets, scores
from modicum.apps.pixelgen.generator.scene import scene_tokens
from modicum.apps.pixelgen.prompt import LIGHT, TEMPERATURE, SensorTokens
from modicum.evaluate.images import psnr

pytestmark = pytest.mark.skipif(not names(), reason="no generator is shipped")
MEGABYTE = 2**20


@pytest.fixture(scope="module", params=names())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def generator(name: str) -> Generator:
    return Generator.load(name)


def _whole(pictures: Tensor) -> Tensor:
    return torch.ones(len(pictures), 1, *pictures.shape[2:], dtype=torch.bool)


def test_files(name: str) -> None:
    files = {file.name: file.stat().st_size for file in Path(locate(name)).iterdir()}
    assert sum(files.values()) < 10 * MEGABYTE
    assert {"README.md", "config.json", "metrics.json", "model.safetensors"} <= files.keys()


def test_colours_are_better_than_none(generator: Generator, photos: Tensor) -> None:
    mask = _whole(photos)
    painted = generator.generate(luma(photos), mask, scene_tokens(photos))
    found, nothing = scores(painted, photos, mask), baselines(photos, mask)
    assert found["psnr"] > max(row["psnr"] for row in nothing.values())
    assert found["luma_arrived"] > 35


def test_colours_are_better_than_none_where_packets_were_lost(generator: Generator, photos: Tensor) -> None:
    mask = lost_packets(len(photos), 32, loss=0.2, run=24, seed=0)
    painted = generator.generate(luma(photos) * mask, mask, scene_tokens(photos))
    assert scores(painted, photos, mask)["psnr"] > baselines(photos, mask)["grey"]["psnr"]


def test_readings_of_other_pictures_are_worse(generator: Generator, photos: Tensor) -> None:
    mask, told = _whole(photos), scene_tokens(photos)
    order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(0))
    right, wrong = (
        psnr(generator.generate(luma(photos), mask, tokens), photos) for tokens in (told, told[order])
    )
    assert right > wrong


def _told(scale: object, token: int, count: int = 8) -> Tensor:
    tokens = torch.zeros(count, len(SensorTokens.sizes), dtype=torch.int64)
    tokens[:, SensorTokens.scales.index(scale)] = token  # type: ignore[arg-type]
    return tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_days_are_brighter_than_nights(generator: Generator, temperature: float) -> None:
    nothing = torch.zeros(8, 1, 32, 32)
    lights = [
        generator.generate(nothing, nothing > 0, _told(LIGHT, token), temperature=temperature).mean().item()
        for token in range(1, LIGHT.size)
    ]
    assert lights == sorted(lights)
    assert lights[-1] > lights[0] + 0.1


def test_heat_is_redder_than_frost(generator: Generator, photos: Tensor) -> None:
    frames = luma(photos[:8])
    cold, hot = (
        generator.generate(frames, _whole(frames), _told(TEMPERATURE, token)).mean((0, 2, 3))
        for token in (1, TEMPERATURE.size - 1)
    )
    assert hot[0] - hot[2] > cold[0] - cold[2] + 0.05


def test_the_card_tells_the_measured_figures(name: str) -> None:
    directory = Path(locate(name))
    metrics = json.loads((directory / "metrics.json").read_text())
    card = (directory / "README.md").read_text()
    assert f"| painted | {metrics['known']['psnr']:.2f} | {metrics['known']['ssim']:.4f} |" in card
    assert metrics["known"]["psnr"] > metrics["grey"]["psnr"]
    assert metrics["known"]["psnr"] > metrics["mean_colour"]["psnr"]
