"""What the sensors would have said of a picture: the tokens that training pairs with pictures.

No photo collection comes with thermometer readings. What the readings shall do to a picture is therefore defined here,
on the picture itself, in the bins of `modicum.apps.pixelgen.prompt`:

    light         mean luma                                    at night = dark ... in daylight = bright
    temperature   mean of Cr - Cb                              freezing = bluish ... hot = reddish
    humidity      root mean square of the chroma, falling      dry = vivid ... damp = pale

Sound changes nothing: its tokens stay unknown in training, and their vectors stay zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modicum.apps.pixelgen.generator.colour import chroma, luma
from modicum.apps.pixelgen.prompt import HUMIDITY, LIGHT, TEMPERATURE, SensorTokens

LUMA_EDGES = (0.30, 0.42, 0.56)
WARMTH_EDGES = (-0.05, 0.0, 0.04, 0.085)
VIVID_EDGES = (0.035, 0.06, 0.09)


def scene_tokens(pictures: Tensor) -> Tensor:
    """Tokens that describe `pictures` `[B, 3, H, W]` in [0, 1]: int64 `[B, positions]`, 0 where nothing is said."""
    colour = chroma(pictures)
    blue, red = colour.mean((2, 3)).unbind(1)
    vivid = colour.square().sum(1).mean((1, 2)).sqrt()
    said = {
        LIGHT: _bin(luma(pictures).mean((1, 2, 3)), LUMA_EDGES),
        TEMPERATURE: _bin(red - blue, WARMTH_EDGES),
        HUMIDITY: len(VIVID_EDGES) - _bin(vivid, VIVID_EDGES),
    }
    silent = torch.full_like(blue, -1, dtype=torch.int64)
    return 1 + torch.stack([said.get(scale, silent) for scale in SensorTokens.scales], dim=1)


def _bin(values: Tensor, edges: tuple[float, ...]) -> Tensor:
    """Index of the bin of every value, int64 `[B]`; a bin holds its lower edge."""
    return torch.bucketize(values, torch.tensor(edges, device=values.device), right=True)
