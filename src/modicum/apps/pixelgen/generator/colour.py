"""Luma and chroma: what the node measured, and what has to be painted.

A monochrome frame is the luma Y of the scene. Colour is two more numbers per pixel (ITU-R BT.601),

    Y = 0.299 R + 0.587 G + 0.114 B        Cb = (B - Y) / 1.772        Cr = (R - Y) / 1.402

and going back keeps Y exactly, whatever Cb and Cr are. Only the cube [0, 1]^3 is in the way: a chroma too strong for
its luma is drawn towards grey until the colour fits, which again leaves Y alone. So a picture painted onto a frame has
the luma of that frame by construction, not by training.

Legend: B pictures; colours [B, 3, H, W] and luma [B, 1, H, W] in [0, 1]; chroma (Cb, Cr) [B, 2, H, W] around 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

RED, GREEN, BLUE = 0.299, 0.587, 0.114  # share of each in the luma
_CB, _CR = 2 * (1 - BLUE), 2 * (1 - RED)
_GREEN_CB, _GREEN_CR = -BLUE * _CB / GREEN, -RED * _CR / GREEN  # so that Y stays


def luma(colours: Tensor) -> Tensor:
    """`[B, 3, H, W] -> [B, 1, H, W]`."""
    red, green, blue = colours.unbind(1)
    return (RED * red + GREEN * green + BLUE * blue)[:, None]


def chroma(colours: Tensor) -> Tensor:
    """Cb and Cr: `[B, 3, H, W] -> [B, 2, H, W]`."""
    y = luma(colours)
    return torch.cat(((colours[:, 2:] - y) / _CB, (colours[:, :1] - y) / _CR), dim=1)


def colours(y: Tensor, c: Tensor) -> Tensor:
    """The colours of luma `y` in [0, 1] and chroma `c`, drawn towards grey where they do not exist.

    Returns:
        `[B, 3, H, W]` in [0, 1]; its luma is `y` up to rounding.
    """
    coloured = offset(c)
    room = torch.where(coloured > 0, 1 - y, y)
    fitting = (room / coloured.abs().clamp_min(1e-6)).amin(1, keepdim=True).clamp(0, 1)
    return (y + fitting * coloured).clamp(0, 1)


def offset(c: Tensor) -> Tensor:
    """How far red, green and blue of chroma `c` are from grey: `[B, 2, H, W] -> [B, 3, H, W]`."""
    cb, cr = c.split(1, dim=1)
    return torch.cat((_CR * cr, _GREEN_CB * cb + _GREEN_CR * cr, _CB * cb), dim=1)
