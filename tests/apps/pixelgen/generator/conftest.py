"""A small random generator, and photographs that travel with scikit-learn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modicum.apps.pixelgen.generator import Generator, GeneratorConfig, PixelNetwork

PIXELS = 96  # of a photograph, that become a crop of 32
SIZES = {"hidden_size": 32, "depth": 2, "num_heads": 2}


@pytest.fixture
def small() -> Generator:
    """A generator whose random network answers strongly to everything that it reads."""
    torch.manual_seed(0)
    network = PixelNetwork(GeneratorConfig(**SIZES)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return Generator(network, steps=2, temperature=1.0)


@pytest.fixture(scope="session")
def photos() -> Tensor:
    """Crops of two photographs, `[n, 3, 32, 32]` in [0, 1], that no generator was trained on."""
    datasets = pytest.importorskip("sklearn.datasets")
    pytest.importorskip("PIL")
    crops = []
    for image in datasets.load_sample_images().images:
        reduced = torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255  # [1, 3, 427, 640]
        tall, wide = (length // PIXELS * 32 for length in image.shape[:2])
        small = torch.nn.functional.interpolate(reduced, (tall, wide), mode="area")
        crops.append(small.unfold(2, 32, 32).unfold(3, 32, 32).permute(0, 2, 3, 1, 4, 5).flatten(0, 2))
    return torch.cat(crops)
