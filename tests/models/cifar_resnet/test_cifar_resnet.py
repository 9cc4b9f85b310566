"""Residual networks for CIFAR: sizes of the paper, files, and channels that leave together everywhere."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from modicum import load
from modicum.errors import CheckpointError, InvalidSetting
from modicum.models.channels import couple, cut, zero
from modicum.models.cifar_resnet import (
    CifarResNetConfig,
    CifarResNetForImageClassification,
    convert,
    load_cifar_resnet,
    save,
)


def made(depth: int = 20, seed: int = 0) -> CifarResNetForImageClassification:
    torch.manual_seed(seed)
    model = CifarResNetForImageClassification(CifarResNetConfig.of_depth(depth)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


@pytest.mark.parametrize(
    ("depth", "parameters"), [(20, 269_722), (32, 464_154), (56, 853_018), (110, 1_727_962)]
)
def test_parameters_are_those_of_the_published_networks(depth: int, parameters: int) -> None:
    model = CifarResNetForImageClassification(CifarResNetConfig.of_depth(depth))
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_a_shortcut_takes_every_second_position_between_zeros() -> None:
    model = made()
    x = torch.rand(2, 16, 8, 8)
    expected = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
    assert torch.equal(model.layer2[0].shortcut(x), expected)  # type: ignore[index, operator]


@pytest.mark.parametrize("seed", range(3))
def test_channels_removed_everywhere_are_channels_set_to_zero(seed: int, tmp_path: Path) -> None:
    model = made(56, seed)
    channels = couple(model, model.dummy_inputs)
    assert sorted(map(len, channels.groups)) == [16] * 9 + [32] * 9 + [64] * 10
    rng, removed = np.random.default_rng(seed), np.zeros(len(channels), dtype=bool)
    for group in channels.groups:
        removed[rng.permutation(group)[: len(group) // 3]] = True
    zeroed = copy.deepcopy(model)
    zero(zeroed, channels, removed)
    cut(model, channels, removed)
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(model(x).logits, zeroed(x).logits, atol=1e-5, rtol=1e-5)
    save(model, tmp_path / "narrow")
    again = load(tmp_path / "narrow")
    torch.testing.assert_close(again(x).logits, model(x).logits)
    assert again.config == model.measured_config()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_original_files_are_converted(prefix: str, tmp_path: Path) -> None:
    model = made()
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 0.9}, tmp_path / "resnet20.th")
    convert(tmp_path / "resnet20.th", tmp_path / "out", CifarResNetConfig.of_depth(20))
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(load_cifar_resnet(tmp_path / "out")(x).logits, model(x).logits)
    with pytest.raises(CheckpointError, match=r"missing: layer1\.3"):
        convert(tmp_path / "resnet20.th", tmp_path / "deeper", CifarResNetConfig.of_depth(32))
    assert not (tmp_path / "deeper").exists()


@pytest.mark.parametrize("depth", [0, 2, 19, 21])
def test_depths_that_there_are_not(depth: int) -> None:
    with pytest.raises(InvalidSetting, match=f"has {depth} layers"):
        CifarResNetConfig.of_depth(depth)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"inner": [16, 16]}, "inner"),
        ({"inner": [16, 16, 16, 16]}, "4 blocks are not 3 equal stages"),
        ({"inner": [16, 0, 16]}, "above zero"),
        ({"inner": [16, 16, 16], "heads": 3}, "heads"),
    ],
)
def test_a_damaged_config_is_named(data: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidSetting, match=says):
        CifarResNetConfig.from_dict(data)
