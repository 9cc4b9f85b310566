"""Tiny random diffusion transformers in many shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from modicum.models.dit import DiT, DiTConfig

_TINY: dict[str, Any] = {
    "input_size": 8,
    "hidden_size": 24,
    "depth": 2,
    "num_heads": 3,
    "num_classes": 5,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "sit": {"kind": "sit"},
    "noise-only": {"learn_sigma": False},
    "sit-without-sigma": {"kind": "sit", "learn_sigma": False},
    "pixels": {"pixel_space": True, "in_channels": 1, "patch_size": 4},
    "odd": {"input_size": 9, "patch_size": 3, "in_channels": 5, "mlp_ratio": 2.5, "num_heads": 1},
    "no-null-label": {"class_dropout_prob": 0.0},
    "one-block": {"depth": 1, "patch_size": 8},
}


def _tiny(name: str = "plain", seed: int = 0, **changes: Any) -> DiT:
    """A model whose every parameter matters: gates and output are far from their initial zero."""
    torch.manual_seed(seed)
    model = DiT(DiTConfig(**{**_TINY, **CASES[name], **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def _batch(model: DiT, count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, times and labels."""
    config = model.config
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, config.in_channels, config.input_size, config.input_size, generator=generator)
    t = torch.rand(count, generator=generator)
    t = t if config.kind == "sit" else (t * 1000).long()
    return x, t, torch.arange(count) % config.num_classes


@pytest.fixture(params=CASES)
def any_dit(request: pytest.FixtureRequest) -> DiT:
    return _tiny(request.param)


@pytest.fixture
def dit() -> DiT:
    return _tiny()


@pytest.fixture
def tiny_dit() -> Callable[..., DiT]:
    """Makes a model: name of a case, seed, changed settings."""
    return _tiny


@pytest.fixture
def batch() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Makes pictures, times and labels for a model."""
    return _batch
