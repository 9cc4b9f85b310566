"""Convolutional encoder and decoder: images <-> feature maps. Module names follow the original files of VAR.

The tokenizers of next-scale models differ in what lies between encoder and decoder (a codebook, signs of numbers)
and in whether there is attention at the lowest resolution; the convolutions are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Convolutions:
    """Sizes of an encoder and its decoder.

    Attributes:
        in_channels: of the image.
        z_channels: of the feature map.
        ch: channels of the first convolution; `ch_mult` multiplies them level by level.
        ch_mult: one entry per level.
        num_res_blocks: residual blocks per level of the encoder; the decoder has one more.
        halvings: how many of the first levels end with half the resolution.
        attention: between all positions, at the lowest level.
        groups: groups of a norm over that many channels.
        eps: of every norm.
    """

    in_channels: int
    z_channels: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    halvings: int
    attention: bool
    groups: Callable[[int], int]
    eps: float

    def norm(self, channels: int) -> nn.GroupNorm:
        """A norm over so many channels."""
        return nn.GroupNorm(self.groups(channels), channels, eps=self.eps)


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice; the shortcut is a 1x1 convolution where the width changes."""

    def __init__(self, inputs: int, outputs: int, sizes: Convolutions) -> None:
        super().__init__()
        self.norm1, self.conv1 = sizes.norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = sizes.norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W] -> [B, outputs, H, W]`."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class SpatialAttention(nn.Module):
    """Single-head attention between all positions of a feature map."""

    def __init__(self, channels: int, sizes: Convolutions) -> None:
        super().__init__()
        self.norm = sizes.norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same shape."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)  # [B, 1, HW, C]
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)  # [B, C, HW]
        return x + self.proj_out(mixed.unflatten(2, x.shape[-2:]))


class Downsample(nn.Module):
    """Stride-2 convolution; one row of padding below and one column to the right."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W] -> [B, C, H/2, W/2]`."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Every pixel twice along both sides, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W] -> [B, C, 2H, 2W]`."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention at the lowest, then the way to the next."""

    def __init__(self, inputs: int, outputs: int, blocks: int, attention: bool, sizes: Convolutions) -> None:
        super().__init__()
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None
        widths = [inputs] + [outputs] * (blocks - 1)
        self.block = nn.ModuleList(ResidualBlock(width, outputs, sizes) for width in widths)
        self.attn = nn.ModuleList(SpatialAttention(outputs, sizes) for _ in range(blocks if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W] -> [B, outputs, H', W']`."""
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        resize = self.downsample or self.upsample
        return x if resize is None else resize(x)


class Middle(nn.Module):
    """Block, attention if there is any, block, at the lowest resolution."""

    def __init__(self, channels: int, sizes: Convolutions) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, sizes)
        self.attn_1 = SpatialAttention(channels, sizes) if sizes.attention else nn.Identity()
        self.block_2 = ResidualBlock(channels, channels, sizes)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same shape."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Image `[B, in_channels, H, W]` to features `[B, z_channels, H / 2^halvings, W / 2^halvings]`."""

    def __init__(self, sizes: Convolutions) -> None:
        super().__init__()
        widths = [sizes.ch * factor for factor in (1, *sizes.ch_mult)]
        lowest = len(sizes.ch_mult) - 1
        self.conv_in = nn.Conv2d(sizes.in_channels, sizes.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for index, (inputs, outputs) in enumerate(pairwise(widths)):
            attention = sizes.attention and index == lowest
            level = Level(inputs, outputs, sizes.num_res_blocks, attention, sizes)
            level.downsample = Downsample(outputs) if index < sizes.halvings else None
            self.down.append(level)
        self.mid = Middle(widths[-1], sizes)
        self.norm_out = sizes.norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], sizes.z_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Features of an image in [-1, 1]."""
        h = self.conv_in(image)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Features to an image; one residual block per level more than the encoder."""

    def __init__(self, sizes: Convolutions) -> None:
        super().__init__()
        widths = [sizes.ch * factor for factor in sizes.ch_mult]
        lowest = len(widths) - 1
        self.conv_in = nn.Conv2d(sizes.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], sizes)
        self.up = nn.ModuleList()
        for index, outputs in enumerate(widths):
            inputs = widths[min(index + 1, lowest)]
            attention = sizes.attention and index == lowest
            level = Level(inputs, outputs, sizes.num_res_blocks + 1, attention, sizes)
            level.upsample = Upsample(outputs) if 0 < index <= sizes.halvings else None
            self.up.append(level)
        self.norm_out = sizes.norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], sizes.in_channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """An image, nominally in [-1, 1] but not clamped."""
        h = self.mid(self.conv_in(features))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))
