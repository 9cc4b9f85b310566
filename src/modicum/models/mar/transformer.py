"""The network of MAR: some tokens of a picture and a class -> a vector for every token, known or not.

Legend: B pictures, S tokens of a picture, V of them visible, K class tokens ("buffer"), C numbers of a token,
E and D channels of encoder and decoder.

    encoder   class K times | visible tokens      [B, K + V, E]
    decoder   class K times | all tokens, the hidden ones replaced by one learned vector      [B, K + S, D]

Both are stacks of plain blocks; any of them can be gated or left out. `diffloss.net` draws a token out of its vector.
Li et al., NeurIPS 2024, arXiv 2406.11838. Every picture of a batch shows as many tokens as the others, so that
visible ones are gathered by index; the original picks them by mask.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from modicum.models.dit.transformer import MLP, NORM_EPS, Attention
from modicum.models.mar.config import MARConfig
from modicum.models.mar.diffloss import TokenNetwork


class Block(nn.Module):
    """Attention and feed-forward behind norms with parameters."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width, int(width * mlp_ratio), approximate="none")

    def forward(self, x: Tensor) -> Tensor:
        """`[B, tokens, width]` to the same."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """The network of one configuration; parameters bear the names of the original files.

    Args:
        config: sizes.
    """

    def __init__(self, config: MARConfig) -> None:
        super().__init__()
        self.config = config
        encoder, decoder, places = config.encoder_embed_dim, config.decoder_embed_dim, config.tokens
        self.class_emb = nn.Embedding(config.class_num, encoder)
        self.fake_latent = nn.Parameter(torch.zeros(1, encoder))
        self.z_proj = nn.Linear(config.channels, encoder)
        self.z_proj_ln = nn.LayerNorm(encoder, eps=NORM_EPS)
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, config.buffer_size + places, encoder))
        self.encoder_blocks = nn.ModuleList(
            Block(encoder, config.encoder_num_heads, config.mlp_ratio) for _ in range(config.encoder_depth)
        )
        self.encoder_norm = nn.LayerNorm(encoder, eps=NORM_EPS)
        self.decoder_embed = nn.Linear(encoder, decoder)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, config.buffer_size + places, decoder))
        self.decoder_blocks = nn.ModuleList(
            Block(decoder, config.decoder_num_heads, config.mlp_ratio) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder, eps=NORM_EPS)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, places, decoder))
        self._initialise()
        self.diffloss = nn.ModuleDict({"net": TokenNetwork(config)})

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return self.fake_latent.dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.fake_latent.device

    @property
    def token_network(self) -> TokenNetwork:
        """What draws a token out of its vector."""
        return cast(TokenNetwork, self.diffloss["net"])

    def forward(
        self,
        tokens: Tensor,
        visible: Tensor,
        y: Tensor,
        places: Tensor | None = None,
        x: Tensor | None = None,
        t: Tensor | None = None,
    ) -> Tensor:
        """What is known of every token; or, given noisy values of some, what their noise is.

        Args:
            tokens: `[B, S, C]`; only the visible ones are read.
            visible: int64 `[B, V]`, indices of the tokens that are there already; V may be 0.
            y: int64 labels `[B]`; -1 is "no class".
            places: int64 `[B, n]`, the tokens that `x` is about.
            x: noisy values `[B, copies, n, C]`.
            t: their original steps `[B, copies, n]`.

        Returns:
            `[B, S, D]`; with `places`, noise and variance `[B, copies, n, 2 C]`.
        """
        z = self.decode(self.encode(tokens, visible, self.condition(y)), visible)
        if places is None or x is None or t is None:
            return z
        known = taken(z, places)[:, None].expand(-1, x.shape[1], -1, -1)  # [B, copies, n, D]
        return self.token_network(x.flatten(0, 2), t.flatten(), known.flatten(0, 2)).unflatten(0, t.shape)

    def condition(self, y: Tensor) -> Tensor:
        """Class vectors `[B, E]` of labels `[B]`."""
        return torch.where(y[:, None] < 0, self.fake_latent, self.class_emb(y.clamp_min(0)))

    def patchify(self, latents: Tensor) -> Tensor:
        """Latents `[B, channels, side, side]` as tokens `[B, S, channels p p]`."""
        return patches(latents, self.config)

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """Tokens `[B, S, channels p p]` as a latent `[B, channels, side, side]`."""
        grid, patch = self.config.grid, self.config.patch_size
        squares = tokens.unflatten(1, (grid, grid)).unflatten(-1, (-1, patch, patch))
        return squares.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)

    def encode(self, tokens: Tensor, visible: Tensor, classes: Tensor) -> Tensor:
        """Class and visible tokens, `[B, K + V, E]`; `classes` of `condition`, the others as of `forward`."""
        x = self.z_proj(taken(tokens.to(self.dtype), visible))  # [B, V, E]
        x = torch.cat((classes[:, None].expand(-1, self.config.buffer_size, -1), x), dim=1)
        places = self.encoder_pos_embed_learned.expand(len(x), -1, -1)
        x = self.z_proj_ln(x + taken(places, self._with_buffer(visible)))
        for block in self.encoder_blocks:
            x = block(x)
        return self.encoder_norm(x)

    def decode(self, x: Tensor, visible: Tensor) -> Tensor:
        """A vector for every token, `[B, S, D]`, out of the encoder's `[B, K + V, E]`."""
        x = self.decoder_embed(x)
        index = self._with_buffer(visible)[..., None].expand(-1, -1, x.shape[-1])
        hidden = self.mask_token.to(x.dtype).expand(len(x), self.decoder_pos_embed_learned.shape[1], -1)
        x = hidden.scatter(1, index, x) + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_norm(x)[:, self.config.buffer_size :] + self.diffusion_pos_embed_learned

    def _with_buffer(self, visible: Tensor) -> Tensor:
        """Indices among class tokens and picture tokens, int64 `[B, K + V]`."""
        buffer = torch.arange(self.config.buffer_size, device=visible.device).expand(len(visible), -1)
        return torch.cat((buffer, self.config.buffer_size + visible), dim=1)

    @torch.no_grad()
    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        learned = [p for n, p in self.named_parameters() if n.endswith(("_learned", "_latent", "_token"))]
        for parameter in (*learned, self.class_emb.weight):
            nn.init.normal_(parameter, std=0.02)


def patches(latents: Tensor, config: MARConfig) -> Tensor:
    """Latents `[B, channels, side, side]` as tokens `[B, S, channels p p]`."""
    grid, patch = config.grid, config.patch_size
    squares = latents.unflatten(2, (grid, patch)).unflatten(4, (grid, patch))  # [B, c, h, p, w, p]
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def taken(x: Tensor, index: Tensor) -> Tensor:
    """`[B, S, C]` at int64 `[B, n]`: `[B, n, C]`."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
