"""Running commands in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modicum.cli.app import app
from modicum.cli.failures import explain


class Terminal:
    """Runs commands in this process and gives what they printed."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd = capfd

    def __call__(self, *arguments: object) -> str:
        self.capfd.readouterr()
        assert explain(app, [str(a) for a in arguments]) == 0
        captured = self.capfd.readouterr()
        assert captured.err == ""
        return captured.out

    def json(self, *arguments: object) -> Any:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def terminal(capfd: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capfd)


@pytest.fixture(scope="session")
def tiny_dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random DiT of four blocks and ten classes that draws 8x8 pixels; never write there."""
    return _dit(tmp_path_factory, "tiny-dit", pixel_space=True, in_channels=1)


@pytest.fixture(scope="session")
def tiny_latent_sit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SiT whose latents `tiny_vae` decodes to 16x16 pixels; never write there."""
    return _dit(tmp_path_factory, "tiny-sit", kind="sit")


@pytest.fixture(scope="session")
def tiny_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random AutoencoderKL that halves the side of pictures; never write there."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
        layers_per_block=1,
    )
    out = tmp_path_factory.mktemp("drawing") / "tiny-vae"
    vae.save_pretrained(out)
    return out


def _dit(factory: pytest.TempPathFactory, name: str, **sizes: Any) -> Path:
    import torch

    from modicum.models.dit import DiT, DiTConfig, save

    torch.manual_seed(0)
    config = DiTConfig(input_size=8, depth=4, hidden_size=24, num_heads=2, num_classes=10, **sizes)
    model = DiT(config)
    with torch.no_grad():
        for parameter in model.parameters():  # no block is an identity, as all are when training begins
            parameter.add_(0.1 * torch.randn_like(parameter))
    return save(model, factory.mktemp("drawing") / name)
