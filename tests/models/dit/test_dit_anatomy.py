from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from modicum.calibrate.statistics import Statistics
from modicum.method import Target
from modicum.models import Anatomy
from modicum.models.dit import DiT, DiTConfig
from modicum.quantize.rtn import RTN

Make = Callable[..., Any]


def test_every_matrix_of_every_block_is_a_layer(any_dit: DiT) -> None:
    anatomy = Anatomy.of(any_dit)
    assert len(anatomy.blocks) == any_dit.config.depth
    for block in anatomy.blocks:
        assert sorted(layer.role for layer in block.layers) == ["ada", "fc1", "fc2", "o", "qkv"]
        assert block.skipped == ()
        assert block.attention is any_dit.blocks[block.index].attn
        assert block.mlp is any_dit.blocks[block.index].mlp
    inside = {layer.name for layer in anatomy.layers()}
    outside = {item.name for item in anatomy.outside}
    matrices = {n.removesuffix(".weight") for n, p in any_dit.named_parameters() if p.dim() >= 2}
    assert inside | outside == matrices
    assert not inside & outside


def test_layers_can_be_compressed_and_put_back(dit: DiT, batch: Make) -> None:
    inputs = batch(dit)
    with torch.no_grad():
        before = dit(*inputs)
        layers = list(Anatomy.of(dit).layers())
        for layer in layers:
            target = Target(layer.name, layer.role, layer.weight, layer.bias)
            form = RTN(bits=8, group_size=12).compress(target, Statistics())
            layer.replace(form)
        compressed = dit(*inputs)
        assert 0 < (compressed - before).norm() < 0.1 * before.norm()
        for layer in layers:
            layer.restore()
        assert torch.equal(dit(*inputs), before)


@pytest.mark.parametrize("preset", ["DiT-XL/2", "TinyDiT-D14"])
def test_published_sizes_on_the_meta_device(preset: str) -> None:
    with torch.device("meta"):
        anatomy = Anatomy.of(DiT(DiTConfig.preset(preset)))
    counts = anatomy.describe()
    depth = anatomy.model.config.depth
    assert counts["layers"] == 5 * depth
    assert counts["layer_parameters"] == depth * 18 * 1152**2
