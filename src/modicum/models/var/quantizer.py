"""Multi-scale residual vector quantization: features <-> a list of token maps.

Encoding peels the features from coarse to fine. At map k: shrink what is left to the map's size (area), take the
nearest code at every position, blow the codes up again (bicubic) and smooth them with a residual convolution
phi, subtract. The sum of what was subtracted approaches the features:

    f_hat = sum_k phi_k(up(codebook[tokens_k])),    phi(h) = (1 - r) h + r conv(h),    r = |quant_resi|

The last map has the full size and is not resized. Few phi are shared by many maps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.errors import InvalidSetting
from modicum.models.next_scale import Schedule
from modicum.models.var.config import VAEConfig


class ResidualConv(nn.Conv2d):
    """phi: a blend of the identity and a 3x3 convolution."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__(channels, channels, 3, padding=1)
        self.ratio = abs(ratio)

    def forward(self, h: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same shape."""
        return h * (1 - self.ratio) + super().forward(h) * self.ratio


class MultiScaleQuantizer(nn.Module):
    """The codebook, the phi and the two directions.

    Args:
        config: sizes.
        schedule: the token maps; the last one has the size of the features.
    """

    ema_vocab_hit_SV: Tensor

    def __init__(self, config: VAEConfig, schedule: Schedule) -> None:
        super().__init__()
        self.config, self.schedule = config, schedule
        self.embedding = nn.Embedding(config.vocab_size, config.z_channels)
        self.quant_resi = _residual_convs(config, len(schedule))
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(len(schedule), config.vocab_size))

    def phi(self, scale: int) -> nn.Module:
        """The residual convolution of a map: the one whose tick is nearest to the map's progress."""
        modules = _shared(self.quant_resi)
        return modules[phi_index(len(modules), self.schedule.progress(scale))]

    def contribution(self, scale: int, codes: Tensor) -> Tensor:
        """What a map adds to the features.

        Args:
            scale: index of the map.
            codes: vectors of the map `[B, tokens, C]`.

        Returns:
            `[B, C, H, W]` of the last map's size.
        """
        h = codes.transpose(1, 2).unflatten(2, self.schedule.sizes[scale])  # [B, C, h, w]
        if scale < len(self.schedule) - 1:
            h = F.interpolate(h, self.schedule.final, mode="bicubic")
        return self.phi(scale)(h)

    def shrink(self, features: Tensor, scale: int) -> Tensor:
        """Features `[B, C, H, W]` at the size of map `scale`, `[B, C, h, w]`."""
        if self.schedule.sizes[scale] == tuple(features.shape[-2:]):
            return features
        return F.interpolate(features, self.schedule.sizes[scale], mode="area")

    def lookup(self, tokens: Tensor) -> Tensor:
        """Codes `[B, tokens, C]` of token indices `[B, tokens]`."""
        return self.embedding(tokens)

    def nearest(self, vectors: Tensor) -> Tensor:
        """Index of the nearest code: `[..., C] -> int64 [...]`; the lower index wins a tie."""
        codes = self.embedding.weight
        if self.config.using_znorm:
            return (F.normalize(vectors, dim=-1) @ F.normalize(codes, dim=-1).T).argmax(-1)
        distances = vectors.square().sum(-1, keepdim=True) + codes.square().sum(-1) - 2 * vectors @ codes.T
        return distances.argmin(-1)

    @torch.no_grad()
    def encode(self, features: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Tokens of every map and the features that they add up to.

        Args:
            features: `[B, C, H, W]`.

        Returns:
            Per map: tokens int64 `[B, tokens]`, running sum `[B, C, H, W]`.

        Raises:
            InvalidSetting: the features do not have the size of the last map.
        """
        if tuple(features.shape[-2:]) != self.schedule.final:
            raise InvalidSetting(
                f"Features of {tuple(features.shape[-2:])} do not fit maps up to {self.schedule.final}.",
                "Give images of the size the model was made for.",
            )
        tokens, running = [], []
        f_hat = torch.zeros_like(features)
        for scale in range(len(self.schedule)):
            rest = self.shrink(features - f_hat, scale)
            tokens.append(self.nearest(rest.flatten(2).transpose(1, 2)))  # [B, tokens]
            f_hat = f_hat + self.contribution(scale, self.lookup(tokens[-1]))
            running.append(f_hat)
        return tokens, running

    def running(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Features `[B, C, H, W]` after each of the given first maps."""
        sums: list[Tensor] = []
        for scale, index in enumerate(tokens):
            added = self.contribution(scale, self.lookup(index))
            sums.append(sums[-1] + added if sums else added)
        return sums

    def teacher_input(self, tokens: Sequence[Tensor]) -> Tensor:
        """What the transformer reads for maps 1, 2, ... if the earlier tokens are these.

        Args:
            tokens: int64 `[B, tokens]` of every map, or of the first few; the last one is not looked at.

        Returns:
            `[B, tokens of the given maps - first, C]`.
        """
        sums = self.running(tokens[:-1])
        maps = [self.shrink(f_hat, scale + 1).flatten(2).transpose(1, 2) for scale, f_hat in enumerate(sums)]
        empty = self.embedding.weight.new_empty(tokens[0].shape[0], 0, self.config.z_channels)
        return torch.cat(maps, dim=1) if maps else empty


def phi_index(count: int, progress: float) -> int:
    """Which of `count` shared convolutions serves a map; the published ticks in the published float arithmetic.

    Args:
        count: number of convolutions.
        progress: 0 at the first map, 1 at the last.
    """
    margin = 1 / 3 / count if count == 4 else 1 / 2 / count
    ticks = np.linspace(margin, 1 - margin, count)
    return int(np.argmin(np.abs(ticks - progress)))


def _residual_convs(config: VAEConfig, maps: int) -> nn.Module:
    """The convolutions, under the names of the original: shared by all, by groups, or one per map."""

    def one() -> nn.Module:
        if abs(config.quant_resi) <= 1e-6:
            return nn.Identity()
        return ResidualConv(config.z_channels, config.quant_resi)

    if config.share_quant_resi == 0:
        return nn.ModuleList(one() for _ in range(config.default_qresi_counts or maps))
    holder = nn.Module()
    if config.share_quant_resi == 1:
        holder.qresi = one()
    else:
        holder.qresi_ls = nn.ModuleList(one() for _ in range(config.share_quant_resi))
    return holder


def _shared(holder: nn.Module) -> list[nn.Module]:
    if isinstance(holder, nn.ModuleList):
        return list(holder)
    if isinstance(shared := getattr(holder, "qresi_ls", None), nn.ModuleList):
        return list(shared)
    return list(holder.children())
