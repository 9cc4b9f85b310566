"""Tiny random VAR models in many shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modicum.models.var import VAR, VAEConfig, VARConfig

_VAE: dict[str, Any] = {
    "vocab_size": 24,
    "z_channels": 4,
    "ch": 8,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "groupnorm_groups": 4,
}
_VAR: dict[str, Any] = {
    "num_classes": 5,
    "depth": 2,
    "embed_dim": 24,
    "num_heads": 3,
    "patch_nums": (1, 2, 3, 5),
}

# name -> settings of the transformer, settings of the VQVAE
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "shared-aln": ({"shared_aln": True}, {}),
    "no-l2-norm": ({"attn_l2_norm": False}, {}),
    "wide-mlp": ({"mlp_ratio": 2.5, "norm_eps": 1e-3}, {}),
    "first-map-of-two": ({"patch_nums": (2, 3, 4)}, {}),
    "one-map": ({"patch_nums": (3,)}, {}),
    "one-phi": ({}, {"share_quant_resi": 1}),
    "phi-per-map": ({}, {"share_quant_resi": 0}),
    "three-phi": ({}, {"share_quant_resi": 3, "quant_resi": -0.25}),
    "no-phi": ({}, {"quant_resi": 0.0}),
    "angle-codes": ({}, {"using_znorm": True}),
    "three-levels": ({}, {"ch_mult": (1, 2, 1), "num_res_blocks": 2, "in_channels": 1}),
}


def tiny_config(name: str = "plain") -> VARConfig:
    transformer, vae = CASES[name]
    return VARConfig(**{**_VAR, **transformer}, vae=VAEConfig(**{**_VAE, **vae}))


def tiny(name: str = "plain", seed: int = 0) -> VAR:
    """A model whose every parameter matters: gates and biases are far from their initial zero."""
    torch.manual_seed(seed)
    model = VAR(tiny_config(name)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(params=CASES)
def any_model(request: pytest.FixtureRequest) -> VAR:
    return tiny(request.param)


@pytest.fixture
def model() -> VAR:
    return tiny()
