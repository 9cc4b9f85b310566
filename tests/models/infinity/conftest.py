"""Tiny random Infinity models in many shapes, and texts for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modicum.models.infinity import BSQVAEConfig, Infinity, InfinityConfig, Resolution, TextFeatures
from modicum.models.next_scale import Schedule

_VAE: dict[str, Any] = {
    "codebook_dim": 6,
    "base_ch": 24,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "patch_size": 2,
}
_MODEL: dict[str, Any] = {
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "mlp_ratio": 8.0,
    "text_channels": 256,
    "text_maxlen": 12,
    "pixels": "0.06M",
}

# name -> settings of the transformer, settings of the tokenizer
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "patchify": ({"apply_spatial_patchify": True}, {"codebook_dim": 3}),
    "one-block-one-head": ({"depth": 1, "num_heads": 1, "mlp_ratio": 20.0}, {}),
    "eight-blocks": ({"depth": 8, "text_channels": 128, "norm_eps": 1e-3}, {}),
    "three-levels": ({}, {"ch_mult": (1, 2, 1), "patch_size": 2, "num_res_blocks": 2, "in_channels": 1}),
    "one-bit": ({}, {"codebook_dim": 1, "ch_mult": (1,), "patch_size": 1}),
}

RESOLUTIONS = {
    "square": Resolution.of(1.0).prefix(4),
    "tall": Resolution.of(1.5).prefix(5),
    "wide": Resolution.of(0.333).prefix(4),
    "one-map": Resolution.of(1.0).prefix(1),
    "own": Resolution(Schedule.of([(1, 1), (3, 2), (2, 4), (2, 4)]), (8, 16)),
}


def tiny_config(name: str = "plain") -> InfinityConfig:
    model, vae = CASES[name]
    return InfinityConfig(**{**_MODEL, **model}, vae=BSQVAEConfig(**{**_VAE, **vae}))


def tiny(name: str = "plain", seed: int = 0) -> Infinity:
    """A model whose every parameter matters: gates and biases are far from their initial zero."""
    torch.manual_seed(seed)
    model = Infinity(tiny_config(name)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def text_for(model: Infinity, *lengths: int, seed: int = 0) -> TextFeatures:
    """Features of prompts of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    return TextFeatures.of(
        [torch.randn(length, model.config.text_channels, generator=generator) for length in lengths]
    )


@pytest.fixture
def make_tiny() -> Any:
    """Builds the tiny model of a name."""
    return tiny


@pytest.fixture
def some_text() -> Any:
    """Makes text features for a model, with prompts of the given lengths."""
    return text_for


@pytest.fixture(params=RESOLUTIONS)
def any_resolution(request: pytest.FixtureRequest) -> Resolution:
    return RESOLUTIONS[request.param]


@pytest.fixture(params=CASES)
def any_model(request: pytest.FixtureRequest) -> Infinity:
    return tiny(request.param)


@pytest.fixture
def model() -> Infinity:
    return tiny()


@pytest.fixture
def text(model: Infinity) -> TextFeatures:
    """Two prompts of different lengths."""
    return text_for(model, 5, 3)
