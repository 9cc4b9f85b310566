"""The transformer of Infinity: token maps so far and a text -> logits of the bits of the next map.

Legend: R rows, L tokens, C channels, D bits of a token.

    x = map_input + level embedding                      map_input: pooled text, or Linear(features so far)
    x = x + g1 * SelfAttn(LN(x) (1 + s1) + b1)           g1 g2 s1 s2 b1 b2 = table of the block + Linear(SiLU(pooled))
    x = x + CrossAttn(LN'(x), text)                      LN' has its own scale and shift
    x = x + g2 * FFN(LN(x) (1 + s2) + b2)
    logits = Linear(LN(x) (1 + s) + b)                   two per bit: of its being 0 and 1

The residual stream, the norms and the head are float32 whatever the blocks compute in. In training one pass sees all
maps under a block-causal mask. In generation one pass sees one map and a cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.errors import InvalidSetting
from modicum.models.infinity.conditioning import AttentionPool, Condition, CrossAttention
from modicum.models.infinity.config import InfinityConfig
from modicum.models.infinity.positions import rotary_table, rotation
from modicum.models.infinity.schedules import Resolution
from modicum.models.next_scale import (
    FeedForward,
    ModulatedNorm,
    Schedule,
    SelfAttention,
    Step,
    modulate,
    without_autocast,
)


class WideNorm(nn.LayerNorm):
    """Layer norm in float32, whatever its parameters are stored in."""

    def forward(self, x: Tensor) -> Tensor:
        """`[R, L, C]` to the same shape, float32."""
        return F.layer_norm(
            x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        )


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward; the first and the last are scaled, shifted and gated."""

    def __init__(self, layer: int, config: InfinityConfig) -> None:
        super().__init__()
        width, heads = config.embed_dim, config.num_heads
        self.layer, self.eps = layer, config.norm_eps
        self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, width) / math.sqrt(width))
        self.sa = SelfAttention(layer, width, heads)
        self.ca_norm = WideNorm(width, eps=config.norm_eps)
        self.ca = CrossAttention(width, heads)
        self.ffn = FeedForward(width, config.ffn_hidden)

    def forward(self, x: Tensor, condition: Condition, step: Step) -> Tensor:
        """`x` float32 `[R, L, C]`."""
        six = self.ada_gss.float() + condition.modulation
        gate1, gate2, scale1, scale2, shift1, shift2 = six.unbind(2)  # [R, 1, C] each
        x = x + gate1 * self.sa(modulate(x, scale1, shift1, self.eps).to(self.dtype), step).float()
        read = self.ca(
            self.ca_norm(x).to(self.dtype), self._text(condition), condition.mask, condition.rounded
        )
        x = x + read.float()
        return x + gate2 * self.ffn(modulate(x, scale2, shift2, self.eps).to(self.dtype)).float()

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which the matrices compute, whatever form they are stored in."""
        return self.sa.q_bias.dtype

    def _text(self, condition: Condition) -> tuple[Tensor, Tensor]:
        """Keys and values of the text."""
        if condition.kept is not None:
            return condition.kept[self.layer]
        return self.ca.keys_values(condition.context)


class Transformer(nn.Module):
    """Predicts maps of bits.

    Args:
        config: sizes.
        dtype: of the blocks, each of which is made in float32 and cast before the next is made.
    """

    def __init__(self, config: InfinityConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        width, text = config.embed_dim, config.text_channels
        self.cfg_uncond = nn.Parameter(torch.empty(config.text_maxlen, text))
        self.text_norm = nn.RMSNorm(text, eps=config.norm_eps)
        self.text_proj_for_sos = AttentionPool(width, text, config.text_pool_heads)
        self.text_proj_for_ca = nn.Sequential(
            nn.Linear(text, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.pos_start = nn.Parameter(torch.empty(1, 1, width))
        self.lvl_embed = nn.Embedding(config.lvl_embed_rows, width)
        self.word_embed = nn.Linear(config.d_vae, width)
        self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(layer, config).to(dtype) for layer in range(config.depth))
        self.head_nm = ModulatedNorm(width, config.norm_eps)
        self.head = nn.Linear(width, 2 * config.d_vae)
        self.initialise()

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the blocks, in which attention runs; the rest is float32."""
        return self._blocks()[0].dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.pos_start.device

    def condition(
        self, text: Tensor, mask: Tensor | None = None, *, keep: bool = True, rounded: bool = False
    ) -> Condition:
        """What the blocks are told about the texts of all rows.

        Args:
            text: features `[R, T, text channels]`, padded.
            mask: bool `[R, T]`, False at padding; None if there is none.
            keep: compute keys and values of the text once, instead of at every map.
            rounded: round queries, keys and values of text to bfloat16, as the original does even in float32.
        """
        visible = None if mask is None else mask[:, None, None]
        normed = self.text_norm(text.to(self.pos_start.dtype))
        pooled = self.text_proj_for_sos(normed, visible, rounded)
        context = self.text_proj_for_ca(normed)
        modulation = self.shared_ada_lin(pooled).view(len(text), 1, 6, -1)
        kept = [block.ca.keys_values(context) for block in self._blocks()] if keep else None
        return Condition(pooled, modulation, context, visible, kept, rounded)

    def unconditional(self, text: Tensor) -> Tensor:
        """The learned text that stands for "no text", as long as `text` `[R, T, text channels]`."""
        return self.cfg_uncond[: text.shape[1]].expand(len(text), -1, -1)

    def levels(self, schedule: Schedule) -> Tensor:
        """Index of every map, int64 `[maps]`.

        Raises:
            InvalidSetting: more maps than the model knows, or a first map of several tokens.
        """
        if len(schedule) > self.config.lvl_embed_rows or schedule.tokens[0] != 1:
            raise InvalidSetting(
                f"{len(schedule)} maps from {schedule.sizes[0]} to {schedule.final} cannot be drawn.",
                f"Infinity draws up to {self.config.lvl_embed_rows} maps, the first of one token.",
            )
        return torch.arange(len(schedule), device=self.device)

    def first_input(self, condition: Condition) -> Tensor:
        """What the first map reads: the pooled text, `[R, 1, C]`."""
        return condition.pooled[:, None] + self.pos_start

    def map_input(self, features: Tensor) -> Tensor:
        """What a later map reads, of the features so far at its size: `[R, L, D] -> [R, L, C]`."""
        return self.word_embed(features.to(self.pos_start.dtype))

    def forward(self, condition: Condition, inputs: Tensor, resolution: Resolution) -> Tensor:
        """Logits of all maps at once, from the true earlier maps (teacher forcing).

        Args:
            condition: of `condition`.
            inputs: what maps 1, 2, ... read, `[R, L - 1, D]`.
            resolution: the maps.

        Returns:
            float32 `[R, L, 2 D]`.
        """
        schedule = resolution.schedule
        table = rotary_table(resolution, self.config.head_dim, self.device)
        step = Step(mask=schedule.visible().to(self.device), rotate=rotation(table))
        x = torch.cat((self.first_input(condition), self.map_input(inputs)), dim=1)
        levels = self.levels(schedule)[schedule.levels().to(self.device)]  # of every token
        return self.logits(self.run(x, levels, condition, step), condition.pooled)

    def run(self, x: Tensor, levels: Tensor, condition: Condition, step: Step) -> Tensor:
        """All blocks.

        Args:
            x: `first_input` or `map_input`, `[R, L, C]`.
            levels: map of every token, int64 `[L]`, or one for all `[1]`.
            condition: of all rows.
            step: what attention has to know.

        Returns:
            Hidden states, float32 `[R, L, C]`.
        """
        x = (x + self.lvl_embed(levels)).float()
        for block in self.blocks:
            x = block(x, condition, step)
        return x

    def logits(self, hidden: Tensor, pooled: Tensor) -> Tensor:
        """Two per bit (2j: bit j is 0, 2j + 1: it is 1): float32 `[R, L, C]`, `[R, C]` to `[R, L, 2 D]`."""
        with without_autocast(hidden.device):
            dtype = self.pos_start.dtype
            return self.head(self.head_nm(hidden.to(dtype), pooled.to(dtype))).float()

    @torch.no_grad()
    def initialise(self) -> None:
        """Fresh weights as published: narrow normals, near-closed gates, quiet outputs."""
        config = self.config
        std = math.sqrt(1 / config.embed_dim / 3)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        self.pos_start.normal_(std=std)
        self.cfg_uncond.copy_(untrained_text(config.text_maxlen, config.text_channels))
        self.head.weight.mul_(0.02)
        self.head_nm.ada_lin.get_parameter("1.weight").mul_(0.5)
        quiet = 1 / math.sqrt(2 * config.depth)
        for block in self._blocks():
            for output in (block.sa.proj, block.ca.proj, block.ffn.fc2):
                output.weight.mul_(quiet)
            block.ada_gss[:, :, :2].mul_(1e-5)
            block.ada_gss[:, :, 2:].mul_(0.5)

    def _blocks(self) -> list[Block]:
        return list(cast("Iterable[Block]", self.blocks))


def untrained_text(tokens: int, channels: int) -> Tensor:
    """What "no text" is before training, `[tokens, channels]`: the same in every model, as in the original."""
    rows = torch.empty(tokens, channels, device="cpu")
    nn.init.trunc_normal_(rows, std=1.2, generator=torch.Generator("cpu").manual_seed(0))
    return rows / math.sqrt(channels)
