"""Convolutional encoder and decoder: images <-> feature maps. Module names follow the original files."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from modicum.models.var.config import VAEConfig


def _norm(channels: int, config: VAEConfig) -> nn.GroupNorm:
    return nn.GroupNorm(config.groupnorm_groups, channels, eps=config.groupnorm_eps)


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice; the shortcut is a 1x1 convolution where the width changes."""

    def __init__(self, inputs: int, outputs: int, config: VAEConfig) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs, config), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = _norm(outputs, config), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W] -> [B, outputs, H, W]`."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class SpatialAttention(nn.Module):
    """Single-head attention between all positions of a feature map."""

    def __init__(self, channels: int, config: VAEConfig) -> None:
        super().__init__()
        self.norm = _norm(channels, config)
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

    def __init__(self, inputs: int, outputs: int, blocks: int, attention: bool, config: VAEConfig) -> None:
        super().__init__()
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None
        widths = [inputs] + [outputs] * (blocks - 1)
        self.block = nn.ModuleList(ResidualBlock(width, outputs, config) for width in widths)
        self.attn = nn.ModuleList(
            SpatialAttention(outputs, config) for _ in range(blocks if attention else 0)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W] -> [B, outputs, H', W']`."""
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        resize = self.downsample or self.upsample
        return x if resize is None else resize(x)


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, channels: int, config: VAEConfig) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, config)
        self.attn_1 = SpatialAttention(channels, config)
        self.block_2 = ResidualBlock(channels, channels, config)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same shape."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Image `[B, in_channels, side, side]` to features `[B, z_channels, side / downsample, ...]`."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.ch * factor for factor in (1, *config.ch_mult)]
        lowest = len(config.ch_mult) - 1
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for index, (inputs, outputs) in enumerate(pairwise(widths)):
            level = Level(inputs, outputs, config.num_res_blocks, index == lowest, config)
            level.downsample = Downsample(outputs) if index < lowest else None
            self.down.append(level)
        self.mid = Middle(widths[-1], config)
        self.norm_out = _norm(widths[-1], config)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Features of an image in [-1, 1]."""
        h = self.conv_in(image)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Features to an image; one residual block per level more than the encoder."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.ch * factor for factor in config.ch_mult]
        lowest = len(widths) - 1
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config)
        self.up = nn.ModuleList()
        for index, outputs in enumerate(widths):
            inputs = widths[min(index + 1, lowest)]
            level = Level(inputs, outputs, config.num_res_blocks + 1, index == lowest, config)
            level.upsample = Upsample(outputs) if index > 0 else None
            self.up.append(level)
        self.norm_out = _norm(widths[0], config)
        self.conv_out = nn.Conv2d(widths[0], config.in_channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """An image, nominally in [-1, 1] but not clamped."""
        h = self.mid(self.conv_in(features))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))
