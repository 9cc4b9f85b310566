"""The space in which the generator paints: half resolution, six channels.

    0..3   luma of the four pixels of a 2x2 cell, as the difference from the concealed frame; 0 where it arrived
    4, 5   chroma of the cell (colour is seen, and stored by every camera, at half the resolution of luma)

Beside them the network reads what is known, twelve more channels: the concealed frame, the mask and the edges of the
four pixels. `unknown` marks what is painted; the rest of a state is zero at all times.

Legend: pictures [B, 3, H, W] in [0, 1] with even sides; h = H / 2, w = W / 2; states [B, 6, h, w].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from modicum.apps.pixelgen.generator.colour import chroma, colours, luma
from modicum.apps.pixelgen.generator.frames import conceal, edges

CELL = 2  # pixels of a cell, along one side
PIXELS = CELL**2
STATE = PIXELS + 2  # channels that are painted
KNOWN = 3 * PIXELS  # channels that are given
LUMA_SCALE, CHROMA_SCALE = 0.2, 0.06  # bring what is painted near unit variance


@dataclass(frozen=True)
class Known:
    """What is known of a picture.

    Attributes:
        frame: measured luma where it arrived, concealed elsewhere, `[B, 1, H, W]`.
        mask: bool `[B, 1, H, W]`, True where a pixel arrived.
        channels: what the network reads, `[B, 12, h, w]`.
        unknown: 1 for every number that has to be painted, else 0; `[B, 6, h, w]`.
    """

    frame: Tensor
    mask: Tensor
    channels: Tensor
    unknown: Tensor

    @classmethod
    def of(cls, frames: Tensor, mask: Tensor) -> Known:
        """What frames `[B, 1, H, W]` in [0, 1] say where `mask` is True."""
        frame = conceal(frames, mask)
        arrived = mask.to(frame.dtype)
        given = torch.cat((2 * frame - 1, arrived, edges(frame)), dim=1)  # [B, 3, H, W]
        missing = F.pixel_unshuffle(1 - arrived, CELL)  # [B, 4, h, w]
        unknown = torch.cat((missing, torch.ones_like(missing[:, :2])), dim=1)
        return cls(frame, mask, F.pixel_unshuffle(given, CELL), unknown)

    def state(self, pictures: Tensor) -> Tensor:
        """The state that stands for `pictures`, `[B, 6, h, w]`."""
        difference = F.pixel_unshuffle(luma(pictures) - self.frame, CELL) / LUMA_SCALE
        cells = F.avg_pool2d(chroma(pictures), CELL) / CHROMA_SCALE
        return torch.cat((difference, cells), dim=1) * self.unknown

    def pictures(self, state: Tensor) -> Tensor:
        """The pictures that a state stands for; measured luma is kept, `[B, 3, H, W]` in [0, 1]."""
        painted = self.frame + LUMA_SCALE * F.pixel_shuffle(state[:, :PIXELS], CELL)
        y = torch.where(self.mask, self.frame, painted).clamp(0, 1)
        c = CHROMA_SCALE * F.interpolate(state[:, PIXELS:], scale_factor=CELL, mode="bilinear")
        return colours(y, c)
