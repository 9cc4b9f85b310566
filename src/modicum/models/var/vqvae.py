"""The image tokenizer of VAR: encoder, multi-scale quantizer, decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from modicum.models.next_scale import Schedule
from modicum.models.next_scale.autoencoder import Decoder, Encoder
from modicum.models.var.config import VAEConfig
from modicum.models.var.quantizer import MultiScaleQuantizer


class VQVAE(nn.Module):
    """Images in [-1, 1] to token maps and back.

    Args:
        config: sizes.
        schedule: the token maps; the image side is the last one's times `config.downsample`.
    """

    def __init__(self, config: VAEConfig, schedule: Schedule) -> None:
        super().__init__()
        kernel, channels = config.quant_conv_ks, config.z_channels
        self.config = config
        self.encoder = Encoder(config.convolutions)
        self.decoder = Decoder(config.convolutions)
        self.quantize = MultiScaleQuantizer(config, schedule)
        self.quant_conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        self.post_quant_conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)

    def features(self, image: Tensor) -> Tensor:
        """What is quantized: `[B, in_channels, side, side] -> [B, z_channels, H, W]`."""
        return self.quant_conv(self.encoder(image))

    def encode(self, image: Tensor) -> list[Tensor]:
        """Tokens int64 `[B, tokens]` of every map of an image in [-1, 1]."""
        return self.quantize.encode(self.features(image))[0]

    def decode(self, tokens: Sequence[Tensor]) -> Tensor:
        """The image in [-1, 1] of the given maps: all of them, or the first few for a coarse one."""
        return self.picture(self.quantize.running(tokens)[-1])

    def picture(self, f_hat: Tensor) -> Tensor:
        """The image in [-1, 1] of quantized features `[B, z_channels, H, W]`."""
        return self.decoder(self.post_quant_conv(f_hat)).clamp(-1, 1)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        # The usage statistics of a file may count other maps than ours: they only matter to its training.
        name = f"{prefix}quantize.ema_vocab_hit_SV"
        if name in state and state[name].shape != self.quantize.ema_vocab_hit_SV.shape:
            state[name] = self.quantize.ema_vocab_hit_SV
        super()._load_from_state_dict(state, prefix, *rest)
