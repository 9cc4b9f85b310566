"""The transformer of VAR: token maps so far -> logits of the next map.

Legend: R rows, L tokens, C channels, V codes, D channels of a code.

    x = map_input + level and position embedding         map_input: class embedding, or Linear(features so far)
    x = x + g1 * Attn(LN(x) (1 + s1) + b1)
    x = x + g2 * FFN (LN(x) (1 + s2) + b2)               g1 g2 s1 s2 b1 b2 = Linear(SiLU(class embedding))
    logits = Linear(LN(x) (1 + s) + b)

In training one pass sees all maps under a block-causal mask. In generation one pass sees one map and a cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from modicum.models.next_scale import (
    FeedForward,
    ModulatedNorm,
    Schedule,
    SelfAttention,
    Step,
    modulate,
    without_autocast,
)
from modicum.models.var.config import VARConfig


class Block(nn.Module):
    """Attention and feed-forward, scaled, shifted and gated by the class."""

    ada_gss: nn.Parameter

    def __init__(self, layer: int, config: VARConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.eps, self.shared = config.norm_eps, config.shared_aln
        self.drop_path = config.drop_path_rate * layer / max(config.depth - 1, 1)
        scale = 0.25 / math.sqrt(width // config.num_heads)
        self.attn = SelfAttention(layer, width, config.num_heads, l2_norm=config.attn_l2_norm, scale=scale)
        self.ffn = FeedForward(width, round(width * config.mlp_ratio))
        if self.shared:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, width) / math.sqrt(width))
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor, step: Step) -> Tensor:
        """`x` `[R, L, C]`; `condition` `[R, C]`, or the shared projection of it `[R, 1, 6, C]`."""
        six = self.ada_gss + condition if self.shared else self.ada_lin(condition).view(len(x), 1, 6, -1)
        gate1, gate2, scale1, scale2, shift1, shift2 = six.unbind(2)  # [R, 1, C] each
        x = x + self._dropped(gate1 * self.attn(modulate(x, scale1, shift1, self.eps), step))
        return x + self._dropped(gate2 * self.ffn(modulate(x, scale2, shift2, self.eps)))

    @torch.no_grad()
    def quiet(self, depth: int) -> None:
        """Scale fresh weights down: outputs by `sqrt(2 depth)`, gates to nearly closed."""
        self.attn.proj.weight.div_(math.sqrt(2 * depth))
        self.ffn.fc2.weight.div_(math.sqrt(2 * depth))
        table = self.ada_gss[0, 0] if self.shared else self.ada_lin.get_parameter("1.weight").view(6, -1)
        table[:2].mul_(1e-5)
        table[2:].mul_(0.5)

    def _dropped(self, branch: Tensor) -> Tensor:
        """Stochastic depth: in training, the branch of some rows is left out."""
        if not self.training or self.drop_path == 0:
            return branch
        kept = torch.rand(branch.shape[0], 1, 1, device=branch.device) >= self.drop_path
        return branch * kept / (1 - self.drop_path)


class Transformer(nn.Module):
    """Predicts token maps; parameters and buffers bear the names of the original files.

    Args:
        config: sizes.
    """

    lvl_1L: Tensor
    attn_bias_for_masking: Tensor

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        self.config, self.schedule = config, config.schedule
        width, total = config.embed_dim, self.schedule.total
        self.word_embed = nn.Linear(config.vae.z_channels, width)
        self.class_emb = nn.Embedding(config.num_classes + 1, width)
        self.pos_start = nn.Parameter(torch.zeros(1, self.schedule.tokens[0], width))
        self.pos_1LC = nn.Parameter(torch.zeros(1, total, width))
        self.lvl_embed = nn.Embedding(len(self.schedule), width)
        self.shared_ada_lin = (
            nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width)) if config.shared_aln else nn.Identity()
        )
        self.blocks = nn.ModuleList(Block(layer, config) for layer in range(config.depth))
        self.head_nm = ModulatedNorm(width, config.norm_eps)
        self.head = nn.Linear(width, config.vae.vocab_size)
        levels, bias = derived_buffers(self.schedule)
        self.register_buffer("lvl_1L", levels)
        self.register_buffer("attn_bias_for_masking", bias)
        self._initialise()

    @property
    def null_label(self) -> int:
        """The label that stands for "no label"."""
        return self.config.num_classes

    def forward(self, labels: Tensor, inputs: Tensor) -> Tensor:
        """Logits of all maps at once, from the true earlier maps (teacher forcing).

        In training mode a share of the labels is replaced by "no label".

        Args:
            labels: int64 `[R]`.
            inputs: what maps 1, 2, ... read, `[R, L - first, D]` (`MultiScaleQuantizer.teacher_input`); may
                stop after any map.

        Returns:
            float32 `[R, L, V]`.
        """
        if self.training:
            dropped = torch.rand(len(labels), device=labels.device) < self.config.cond_drop_rate
            labels = torch.where(dropped, self.null_label, labels)
        condition = self.class_emb(labels)
        x = torch.cat((self.first_input(condition), self.word_embed(inputs.to(self.dtype))), dim=1)
        x = x + self.places()[:, : x.shape[1]]
        mask = self.attn_bias_for_masking[:, :, : x.shape[1], : x.shape[1]]
        return self.run(x, condition, Step(mask=mask))

    def map_pass(self, x: Tensor, condition: Tensor, step: Step) -> Tensor:
        """Logits of one map, float32 `[R, tokens, V]`.

        Args:
            x: `first_input` for map 0, else `word_embed` of the features so far, `[R, tokens, C]`.
            condition: class embeddings `[R, C]`.
            step: scale and cache.
        """
        return self.run(x + self.places()[:, self.schedule.span(step.scale)], condition, step)

    def run(self, x: Tensor, condition: Tensor, step: Step) -> Tensor:
        """All blocks and the head; `x` has its positions."""
        shared = self.shared_ada_lin(condition)
        modulation = shared.view(len(x), 1, 6, -1) if self.config.shared_aln else condition
        for block in self.blocks:
            x = block(x, modulation, step)
        with without_autocast(x.device):
            return self.head(self.head_nm(x.to(self.dtype), condition.to(self.dtype))).float()

    def first_input(self, condition: Tensor) -> Tensor:
        """What the first map reads: the class, once per token, `[R, first, C]`."""
        return condition[:, None] + self.pos_start

    def places(self) -> Tensor:
        """Level plus position embedding of every token, `[1, L, C]`."""
        return self.lvl_embed(self.lvl_1L) + self.pos_1LC

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return self.pos_1LC.dtype

    @torch.no_grad()
    def _initialise(self) -> None:
        """Initial weights as published: narrow normals, near-closed gates, a quiet head."""
        std = math.sqrt(1 / self.config.embed_dim / 3)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        nn.init.trunc_normal_(self.pos_start, std=std)
        nn.init.trunc_normal_(self.pos_1LC, std=std)
        self.head.weight.mul_(0.02)
        self.head_nm.ada_lin.get_parameter("1.weight").mul_(0.5)
        for block in cast("Iterable[Block]", self.blocks):
            block.quiet(self.config.depth)


def derived_buffers(schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Map of every token int64 `[1, L]`, and the additive block-causal mask `[1, 1, L, L]`."""
    bias = torch.zeros(schedule.total, schedule.total).masked_fill(~schedule.visible(), -torch.inf)
    return schedule.levels()[None], bias[None, None]
