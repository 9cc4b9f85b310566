"""The image tokenizer of Infinity: encoder, binary spherical quantizer, decoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from modicum.models.infinity import bsq
from modicum.models.infinity.config import BSQVAEConfig
from modicum.models.next_scale.autoencoder import Decoder, Encoder


class BSQVAE(nn.Module):
    """Images in [-1, 1] to maps of bits and back. The quantizer has no parameters.

    Args:
        config: sizes.
    """

    def __init__(self, config: BSQVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.convolutions)
        self.decoder = Decoder(config.convolutions)

    def features(self, image: Tensor) -> Tensor:
        """What is quantized: `[B, in_channels, height, width] -> [B, codebook_dim, H, W]`."""
        return self.encoder(image)

    def encode(self, image: Tensor, sizes: Sequence[bsq.Size]) -> list[Tensor]:
        """Bits, bool `[B, h, w, codebook_dim]`, of every map of an image in [-1, 1].

        Args:
            image: `[B, in_channels, height, width]`.
            sizes: of the maps; the last one is that of the features.
        """
        return bsq.quantize(self.features(image), sizes)[0]

    def picture(self, summed: Tensor) -> Tensor:
        """The image in [-1, 1] of summed codes `[B, codebook_dim, H, W]`."""
        return self.decoder(summed).clamp(-1, 1)
