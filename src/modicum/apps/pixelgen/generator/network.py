"""The network: DiT's blocks, told of several readings instead of one class.

The state that is painted and what is known of the picture enter together, stacked as channels; the velocity of the
state comes out. Readings are rows of one table, added up; row 0 of a reading is "unknown". Dropping all of them in a
share of the training steps teaches the network to paint without, which guidance needs.

All rows start at zero, so a reading that training never mentions has no influence at all.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from modicum.apps.pixelgen.generator.canvas import KNOWN, STATE
from modicum.apps.pixelgen.prompt import SensorTokens
from modicum.models import register
from modicum.models.dit import DiTConfig, Transformer
from modicum.models.families import family_of

CLOCK = 1000  # the time features resolve steps of a thousand


class GeneratorConfig(DiTConfig):
    """Sizes of the generator; see `DiTConfig`.

    Attributes:
        input_size: side of a tile in cells of 2x2 pixels.
        token_sizes: how many tokens each reading has, "unknown" included.
    """

    model_type: ClassVar[str] = "pixelgen"

    input_size: int = Field(16, gt=0)
    patch_size: int = Field(4, gt=0)
    in_channels: int = Field(STATE + KNOWN, gt=0)
    hidden_size: int = Field(96, gt=0)
    depth: int = Field(8, gt=0)
    num_heads: int = Field(3, gt=0)
    learn_sigma: bool = False
    token_sizes: tuple[int, ...] = SensorTokens.sizes

    @property
    def out_channels(self) -> int:
        """Channels that the last layer computes."""
        return STATE


class ReadingsEmbedder(nn.Module):
    """Tokens of all readings to one vector.

    Args:
        sizes: how many tokens each reading has.
        width: channels.
        dropout: share of the pictures that `drop` leaves without any reading.
    """

    def __init__(self, sizes: tuple[int, ...], width: int, dropout: float) -> None:
        super().__init__()
        self.positions, self.rows, self.dropout = len(sizes), max(sizes), dropout
        self.embedding_table = nn.Embedding(self.positions * self.rows, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 `[B, positions] -> [B, width]`."""
        offsets = self.rows * torch.arange(self.positions, device=tokens.device)
        return self.embedding_table(tokens + offsets).sum(1)

    def dropped(self, tokens: Tensor) -> Tensor:
        """Which pictures a training step paints without readings, bool `[B]`."""
        return torch.rand(len(tokens), device=tokens.device) < self.dropout

    def without(self, tokens: Tensor, dropped: Tensor) -> Tensor:
        """`tokens` with "unknown" everywhere in the rows that are `dropped` (bool `[B]`)."""
        return tokens.masked_fill(dropped.bool()[:, None], 0)


class PixelNetwork(Transformer):
    """DiT for states and readings: `forward(x, t, tokens)`, x `[B, 18, side, side]`, gives `[B, 6, side, side]`.

    Args:
        config: sizes.
    """

    config: GeneratorConfig

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__(config)
        self.y_embedder = ReadingsEmbedder(  # type: ignore[assignment]
            config.token_sizes, config.hidden_size, config.class_dropout_prob
        )
        nn.init.zeros_(self.y_embedder.embedding_table.weight)

    def condition(self, t: Tensor, y: Tensor, drop_ids: Tensor | None = None) -> Tensor:
        """What the blocks are told, `[B, width]`.

        Args:
            t: times in [0, 1], `[B]`.
            y: tokens, int64 `[B, positions]`.
            drop_ids: bool `[B]`, whose readings are ignored; by default a share of them in training mode.
        """
        return super().condition(CLOCK * t, y, drop_ids)


register(replace(family_of(DiTConfig), name="pixelgen", model_types=(GeneratorConfig.model_type,)))
