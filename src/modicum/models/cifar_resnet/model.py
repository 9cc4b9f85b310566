"""Residual networks for CIFAR, with shortcuts that have no weights.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385, section 4.2: where a stage halves
the side and widens, the shortcut takes every second position and pads channels with zeros (option A). Parameters bear
the names of the widely used weights: conv1, bn1, layer1 .. layer3 with conv1, bn1, conv2, bn2, and linear.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from modicum.models.channels.coupling import Ids
from modicum.models.channels.rules import Call
from modicum.models.cifar_resnet.config import STAGES, CifarResNetConfig


class Classified(NamedTuple):
    """The answer: `logits` [B, classes]."""

    logits: Tensor


class PaddedShortcut(nn.Module):
    """Every second position, between zero channels.

    Args:
        before: zero channels in front.
        after: zero channels behind.
    """

    before: Tensor
    after: Tensor

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        # as tensors, so that pruning shortens them like any other
        self.register_buffer("before", torch.zeros(before), persistent=False)
        self.register_buffer("after", torch.zeros(after), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, before + C + after, H / 2, W / 2]."""
        x = x[:, :, ::2, ::2]
        zeros = (
            pad[None, :, None, None].expand(len(x), -1, *x.shape[2:]) for pad in (self.before, self.after)
        )
        before, after = zeros
        return torch.cat([before, x, after], dim=1)

    def follow(self, call: Call) -> Ids:
        """The channels of the result (see `modicum.models.channels.rules`)."""
        before, after = call.ledger.fresh(len(self.before)), call.ledger.fresh(len(self.after))
        call.bind("before", 0, before)
        call.bind("after", 0, after)
        return np.concatenate([before, call.given[0], after])


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, read: int, inner: int, made: int, shortcut: nn.Module, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(read, inner, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, made, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(made)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H', W']."""
        y = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(y)) + self.shortcut(x)).relu()


class CifarResNetForImageClassification(nn.Module):
    """The network.

    Args:
        config: its widths.
    """

    def __init__(self, config: CifarResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv2d(3, config.width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(config.width)
        per_stage, widths = len(config.inner) // STAGES, (config.width, *config.widths)
        for stage, (read, made) in enumerate(pairwise(widths)):
            blocks = nn.Sequential()
            for index in range(per_stage):
                first = index == 0 and stage > 0
                shortcut = PaddedShortcut(*config.pads[stage - 1]) if first else nn.Identity()
                inner = config.inner[stage * per_stage + index]
                blocks.append(ResidualBlock(read if index == 0 else made, inner, made, shortcut, 1 + first))
            self.add_module(f"layer{stage + 1}", blocks)
        self.linear = nn.Linear(widths[-1], config.classes)

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """One picture."""
        return {"pixel_values": torch.zeros(1, 3, 32, 32, device=self.linear.weight.device)}

    def forward(self, pixel_values: Tensor) -> Classified:
        """Normalized pictures [B, 3, 32, 32]."""
        x = self.bn1(self.conv1(pixel_values)).relu()
        x = self.get_submodule("layer3")(self.get_submodule("layer2")(self.get_submodule("layer1")(x)))
        return Classified(self.linear(x.mean([2, 3])))

    def measured_config(self) -> CifarResNetConfig:
        """The config that the tensors imply, after widths were changed."""
        blocks = [m for m in self.modules() if isinstance(m, ResidualBlock)]
        pads = [m for m in self.modules() if isinstance(m, PaddedShortcut)]
        return CifarResNetConfig(
            width=self.conv1.out_channels,
            pads=tuple((len(pad.before), len(pad.after)) for pad in pads),
            inner=tuple(block.conv1.out_channels for block in blocks),
            classes=self.linear.out_features,
        )
