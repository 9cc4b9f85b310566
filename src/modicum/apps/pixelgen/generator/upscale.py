"""The last stage: small painted colours under the measured luma of the full size, and lost luma from its neighbours.

Colour is painted at a k-th of the size. Bicubic interpolation spreads it over edges that the luma, known at full size,
shows sharply; and a lost pixel is more than the mean of its neighbours. A few convolutions, guided by the luma, learn
both as a difference from the simple way:

    y = measured luma; lost, the mean of its neighbours; the painted one where nothing arrived nearby
    c = bicubic(small colour), moved in every k x k pixels until their mean is the small colour
    dy, dc = network(y, mask, c, log2 k, painted)   dy counts where luma was lost nearby, dc where k > 1

That is the residual learning of VDSR (Kim et al., CVPR 2016, arXiv 1511.04587) at half resolution. As a cascade of
diffusion models tells its later stages how far to trust the earlier ones (Ho et al., JMLR 2022, arXiv 2106.15282), the
network is told whether the small colours were painted. Those it may draw back where they are seldom right; true ones
are facts, and after `c + dc` their means are restored. At k = 1 colours stay as they are, and are not looked at.

Legend: frames [B, 1, H, W] in [0, 1]; masks bool [B, 1, H, W]; small pictures [B, 3, ceil(H / k), ceil(W / k)].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.apps.pixelgen.generator.canvas import CELL, CHROMA_SCALE, LUMA_SCALE, PIXELS
from modicum.apps.pixelgen.generator.colour import chroma, colours, luma
from modicum.apps.pixelgen.generator.frames import conceal

READ, WRITTEN = 4, 3  # numbers per pixel: luma, mask and chroma; luma and chroma
TOLD = 2  # numbers per picture: log2 k, and whether its colours were painted
REACH = 4  # pixels from which a lost one still learns something


class Residual(nn.Module):
    """Two convolutions that add to what they read.

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, width, h, w]`, likewise back."""
        return x + self.second(F.relu(self.first(x)))


class Upscaler(nn.Module):
    """Small pictures at full size.

    Args:
        width: channels.
        depth: pairs of convolutions.
    """

    def __init__(self, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        self.enter = nn.Conv2d(READ * PIXELS + TOLD, width, 3, padding=1)
        self.body = nn.Sequential(*(Residual(width) for _ in range(depth)))
        self.leave = nn.Conv2d(width, WRITTEN * PIXELS, 3, padding=1)
        nn.init.zeros_(self.leave.weight)  # untrained, it is the simple way
        nn.init.zeros_(self.leave.get_parameter("bias"))

    def forward(self, small: Tensor, frames: Tensor, mask: Tensor, k: int, painted: bool = True) -> Tensor:
        """Pictures at full size, `[B, 3, H, W]` in [0, 1]; luma is kept where it arrived.

        Args:
            small: pictures of a k-th of the size.
            frames: luma at full size; what stands where nothing arrived does not matter.
            mask: bool, True where a pixel arrived.
            k: pixels that became one, along one side.
            painted: whether the small colours are guesses, rather than true.
        """
        y, c = self.found(small, frames, mask, k, painted)
        return colours(y.clamp(0, 1), c)

    def found(
        self, small: Tensor, frames: Tensor, mask: Tensor, k: int, painted: bool
    ) -> tuple[Tensor, Tensor]:
        """Luma `[B, 1, H, W]` and chroma `[B, 2, H, W]` of the pictures, whether or not such colours exist."""
        near = _near(mask, k)
        y, c = interpolated(small, frames, mask, k)
        read = torch.cat((2 * y - 1, mask.to(y.dtype), c / CHROMA_SCALE if k > 1 else 0 * c), dim=1)
        dy, dc = self._difference(read, (math.log2(k), float(painted)))
        y = torch.where(near & ~mask, y + dy, y)
        if k == 1:
            return y, c
        return y, c + dc if painted else with_means(c + dc, chroma(small), k)

    def answer(self, x: Tensor) -> Tensor:
        """What the network says of cells of 2x2 pixels: `[B, 18, h, w] -> [B, 12, h, w]`."""
        return self.leave(self.body(F.relu(self.enter(x))))

    def _difference(self, read: Tensor, told: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """What the network adds to luma and chroma, of what it reads `[B, 4, H, W]`."""
        height, width = read.shape[-2:]
        read = F.pad(read, (0, -width % CELL, 0, -height % CELL), mode="replicate")
        x = F.pixel_unshuffle(read, CELL)  # [B, 16, h, w]
        constant = x.new_tensor(told).view(1, TOLD, 1, 1).expand(len(x), TOLD, *x.shape[2:])
        x = self.answer(torch.cat((x, constant), dim=1))
        difference = F.pixel_shuffle(x, CELL)[:, :, :height, :width]
        return LUMA_SCALE * difference[:, :1], CHROMA_SCALE * difference[:, 1:]


def interpolated(small: Tensor, frames: Tensor, mask: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The simple way: luma `[B, 1, H, W]` from neighbours, chroma `[B, 2, H, W]` by bicubic interpolation.

    The mean chroma of every k x k pixels is that of the small picture.
    """
    height, width = frames.shape[-2:]
    y, c = luma(small), chroma(small)
    if k > 1:
        large = F.interpolate(torch.cat((y, c), dim=1), scale_factor=k, mode="bicubic")[:, :, :height, :width]
        y, c = large[:, :1], with_means(large[:, 1:], c, k)
    return torch.where(_near(mask, k), conceal(frames, mask), y), c


def with_means(c: Tensor, small: Tensor, k: int) -> Tensor:
    """Chroma `[B, 2, H, W]`, moved in every k x k pixels until their mean is `small`."""
    off = small - F.avg_pool2d(c, k, ceil_mode=True)
    return c + F.interpolate(off, scale_factor=k)[:, :, : c.shape[2], : c.shape[3]]


def _near(mask: Tensor, k: int) -> Tensor:
    """Where something arrived nearby, bool `[B, 1, H, W]`."""
    reach = max(k, REACH)
    across = F.max_pool2d(mask.float(), (1, 2 * reach + 1), stride=1, padding=(0, reach))
    return F.max_pool2d(across, (2 * reach + 1, 1), stride=1, padding=(reach, 0)) > 0
