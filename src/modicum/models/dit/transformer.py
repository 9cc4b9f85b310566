"""The network of DiT and SiT: a noisy picture, a time and a class -> noise and its variance, or a velocity.

Legend: B pictures, C channels of the picture, T tokens, D channels of a token, p side of a patch.

    x = patches of the picture, projected + position        [B, T, D]
    c = network(time) + row of the class                    [B, D]
    x = x + g1 * Attn(LN(x) (1 + s1) + b1)
    x = x + g2 * MLP (LN(x) (1 + s2) + b2)                  b1 s1 g1 b2 s2 g2 = Linear(SiLU(c)), per block
    out = Linear(LN(x) (1 + s) + b), patches put together   [B, C or 2 C, side, side]

The norms have no parameters. Every block is a residual step of one width: any of them can be gated or left out,
which is what depth pruning does. Names and shapes of the parameters, the position table among them, are those of
the original files. Peebles & Xie, ICCV 2023, arXiv 2212.09748; Ma et al., ECCV 2024, arXiv 2401.08740.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.models.dit.config import DiTConfig
from modicum.models.dit.embeddings import LabelEmbedder, TimeEmbedder, positions

NORM_EPS = 1e-6
GUIDED_CHANNELS = 3  # the published samplers guide three of four latent channels


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without parameters, then `* (1 + scale) + shift`; `[B, T, D]` with `[B, D]` twice."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale[:, None]) + shift[:, None]


class PatchEmbed(nn.Module):
    """Pictures to tokens, row by row: `[B, C, side, side] -> [B, T, D]`."""

    def __init__(self, patch: int, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        # contiguous, or every block would work on channels that lie far apart
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()


class Attention(nn.Module):
    """Every token sees every token; `qkv` holds the rows of q, k and v one after another."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, D] -> [B, T, D]`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, T, d]
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with GELU between them: its tanh form in DiT, the exact one ("none") in MAR."""

    def __init__(self, width: int, hidden: int, approximate: Literal["tanh", "none"] = "tanh") -> None:
        super().__init__()
        self.approximate = approximate
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, D] -> [B, T, D]`."""
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))


class Block(nn.Module):
    """Attention and feed-forward, shifted, scaled and gated by the condition."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.attn = Attention(width, config.num_heads)
        self.mlp = MLP(width, int(width * config.mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """`x` `[B, T, D]`, `c` `[B, D]` to `[B, T, D]`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attn(modulate(x, shift1, scale1))
        return x + gate2[:, None] * self.mlp(modulate(x, shift2, scale2))


class FinalLayer(nn.Module):
    """Tokens to patches: `[B, T, D] -> [B, T, p * p * channels]`."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.linear = nn.Linear(width, config.patch_size**2 * config.out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(x, shift, scale))


class Transformer(nn.Module):
    """The network of one configuration.

    Args:
        config: sizes.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.x_embedder = PatchEmbed(config.patch_size, config.in_channels, width)
        self.t_embedder = TimeEmbedder(width)
        self.y_embedder = LabelEmbedder(config.num_classes, width, config.class_dropout_prob)
        self.pos_embed = nn.Parameter(torch.empty(1, config.tokens, width), requires_grad=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)
        self._initialise()

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return self.pos_embed.dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.pos_embed.device

    @property
    def null_label(self) -> int:
        """The label that stands for "no label"."""
        return self.config.num_classes

    def forward(self, x: Tensor, t: Tensor, y: Tensor, drop_ids: Tensor | None = None) -> Tensor:
        """What the noise (DiT; then the variance) or the velocity (SiT) is.

        Args:
            x: noisy pictures `[B, C, side, side]`.
            t: step 0 .. 999 (DiT) or time in [0, 1] (SiT), `[B]`.
            y: int64 labels `[B]`.
            drop_ids: bool or 0/1 `[B]`, whose label is ignored; by default none is in evaluation mode and a
                share of `class_dropout_prob` is in training mode.

        Returns:
            `[B, 2 C, side, side]`, or `[B, C, side, side]` from SiT or without learned variance.
        """
        c = self.condition(t, y, drop_ids)
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, c)
        return self.head(x, c)

    def embed(self, x: Tensor) -> Tensor:
        """Tokens with their positions: `[B, C, side, side] -> [B, T, D]`."""
        return self.x_embedder(x.to(self.dtype)) + self.pos_embed

    def condition(self, t: Tensor, y: Tensor, drop_ids: Tensor | None = None) -> Tensor:
        """What the blocks are told of time and class, `[B, D]`; arguments as of `forward`."""
        if drop_ids is None and self.training and self.config.class_dropout_prob > 0:
            drop_ids = self.y_embedder.dropped(y)
        labels = y if drop_ids is None else self.y_embedder.without(y, drop_ids)
        return self.t_embedder(t) + self.y_embedder(labels)

    def head(self, x: Tensor, c: Tensor) -> Tensor:
        """The prediction of the last tokens: `[B, T, D]` and `[B, D]` to `[B, channels, side, side]`."""
        grid, patch = self.config.grid, self.config.patch_size
        patches = self.final_layer(x, c).unflatten(1, (grid, grid)).unflatten(-1, (patch, patch, -1))
        picture = patches.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # [B, channels, side, side]
        return picture[:, : self.config.in_channels] if self.config.kind == "sit" else picture

    def forward_with_cfg(
        self, x: Tensor, t: Tensor, y: Tensor, cfg_scale: float, channels: int = GUIDED_CHANNELS
    ) -> Tensor:
        """Prediction under classifier-free guidance, `u + cfg_scale * (c - u)` on the first channels.

        Args:
            x: noisy pictures `[2 B, C, side, side]`; the first half is used twice.
            t: `[2 B]`.
            y: int64 `[2 B]`: the labels, then as many times "no label".
            cfg_scale: 1 is the conditional prediction.
            channels: how many are guided; the others keep each half's own value.

        Returns:
            `[2 B, ...]` as of `forward`; the guided channels of both halves are equal.
        """
        half = x[: len(x) // 2]
        out = self.forward(torch.cat((half, half)), t, y)
        conditional, unconditional = out[:, :channels].chunk(2)
        guided = unconditional + cfg_scale * (conditional - unconditional)
        return torch.cat((guided.repeat(2, 1, 1, 1), out[:, channels:]), dim=1)

    @torch.no_grad()
    def _initialise(self) -> None:
        """Initial weights as published: every block starts as the identity, the output as zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(cast("Tensor", self.x_embedder.proj.bias))
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for name in ("0.weight", "2.weight"):
            nn.init.normal_(self.t_embedder.mlp.get_parameter(name), std=0.02)
        modulated: Iterable[Block | FinalLayer] = (*cast("Iterable[Block]", self.blocks), self.final_layer)
        for part in modulated:
            nn.init.zeros_(part.adaLN_modulation.get_parameter("1.weight"))
        nn.init.zeros_(self.final_layer.linear.weight)
        self.pos_embed.copy_(positions(self.config.hidden_size, self.config.grid))
