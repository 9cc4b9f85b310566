"""Large frames at the price of small ones: colour is painted at a fraction of the size, luma stays as measured.

Eyes, and every video codec, take colour at a lower resolution than luma. So a large frame is reduced, its colours are
painted there, and they are laid under the measured luma at full size. The network was trained on whole scenes of few
pixels: reduced, it sees more of the scene at a time, and guesses better what it is looking at. How colours are laid
there without a trained last stage is here; with one, see `upscale`.

Legend: frames [B, 1, H, W] in [0, 1]; masks bool [B, 1, H, W]; k: pixels that become one, along one side.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from modicum.apps.pixelgen.generator.colour import chroma, colours, luma
from modicum.apps.pixelgen.generator.frames import conceal


def reduced(frames: Tensor, mask: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Frames and masks of a k-th of the size: means of the pixels that arrived, True where at least one did."""
    arrived = mask.to(frames.dtype)
    total, share = (F.avg_pool2d(values, k, ceil_mode=True) for values in (frames * arrived, arrived))
    return total / share.clamp_min(1e-6), share > 0


def enlarged(pictures: Tensor, frames: Tensor, mask: Tensor, k: int) -> Tensor:
    """Reduced pictures at full size, with measured luma where it arrived: `[B, 3, H, W]`.

    A lost pixel takes its luma from its neighbours if any arrived in its k x k pixels, else from the picture.
    """
    height, width = frames.shape[-2:]
    large = F.interpolate(pictures, scale_factor=k, mode="bilinear")[:, :, :height, :width]
    near = (
        F.interpolate(reduced(frames, mask, k)[1].to(frames.dtype), scale_factor=k)[:, :, :height, :width] > 0
    )
    y = torch.where(near, conceal(frames, mask), luma(large))
    return colours(y, chroma(large))
