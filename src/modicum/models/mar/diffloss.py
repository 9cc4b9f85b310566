"""The small network of MAR that draws one token: it removes the noise from 16 numbers, told what the decoder knows.

Legend: N tokens, C numbers of a token, W width, Z channels of the condition.

    y = network(time) + Linear(z)                        [N, W]
    x = x + g * MLP(LN(x) (1 + s) + b)                   b s g = Linear(SiLU(y)), per block
    out = Linear(LN(x) (1 + s) + b)                      [N, 2 C], noise and variance
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from modicum.models.dit.embeddings import TimeEmbedder
from modicum.models.dit.transformer import NORM_EPS
from modicum.models.mar.config import MARConfig


class ResBlock(nn.Module):
    """A residual step of the token network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """`[N, W]` twice to `[N, W]`."""
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, dim=-1)
        return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)


class OutputLayer(nn.Module):
    """Width to noise and variance."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """`[N, W]` twice to `[N, 2 C]`."""
        shift, scale = self.adaLN_modulation(y).chunk(2, dim=-1)
        return self.linear(F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift)


class TokenNetwork(nn.Module):
    """The network; parameters bear the names of the original files."""

    def __init__(self, config: MARConfig) -> None:
        super().__init__()
        width = config.diffloss_w
        self.time_embed = TimeEmbedder(width)
        self.cond_embed = nn.Linear(config.decoder_embed_dim, width)
        self.input_proj = nn.Linear(config.channels, width)
        self.res_blocks = nn.ModuleList(ResBlock(width) for _ in range(config.diffloss_d))
        self.final_layer = OutputLayer(width, 2 * config.channels)
        self._initialise()

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """Noise and variance of noisy tokens.

        Args:
            x: `[N, C]`.
            t: original steps `[N]`.
            z: what the decoder knows of each token, `[N, Z]`.

        Returns:
            `[N, 2 C]`.
        """
        y = self.time_embed(t) + self.cond_embed(z)
        x = self.input_proj(x.to(z.dtype))
        for block in self.res_blocks:
            x = block(x, y)
        return self.final_layer(x, y)

    def _initialise(self) -> None:
        """Initial weights as published: every block starts as the identity, the output as zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for name in ("0.weight", "2.weight"):
            nn.init.normal_(self.time_embed.mlp.get_parameter(name), std=0.02)
        for name, parameter in self.named_parameters():
            if "adaLN_modulation" in name or name.startswith("final_layer.linear"):
                nn.init.zeros_(parameter)
