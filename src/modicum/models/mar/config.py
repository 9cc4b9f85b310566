"""Sizes of a MAR model, with the published presets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from modicum.errors import InvalidSetting, UnknownName
from modicum.models.dit.config import NO_SIZES


class MARConfig(BaseModel):
    """Sizes under the argument names of the original constructor.

    Attributes:
        img_size: side of the image in pixels.
        vae_stride: pixels per latent position, along one side.
        patch_size: latent positions per token, along one side.
        vae_embed_dim: channels of a latent position.
        encoder_embed_dim, encoder_depth, encoder_num_heads: of the encoder.
        decoder_embed_dim, decoder_depth, decoder_num_heads: of the decoder.
        mlp_ratio: hidden channels of the feed-forward layers over the width.
        class_num: labels are 0 .. class_num - 1.
        buffer_size: tokens that carry the class.
        diffloss_d, diffloss_w: depth and width of the network that draws a token.
        pixel_space: whether the model draws pixels in [-1, 1] instead of the latents of an autoencoder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    model_type: ClassVar[str] = "mar"

    img_size: int = Field(256, gt=0)
    vae_stride: int = Field(16, gt=0)
    patch_size: int = Field(1, gt=0)
    vae_embed_dim: int = Field(16, gt=0)
    encoder_embed_dim: int = Field(1024, gt=0)
    encoder_depth: int = Field(16, gt=0)
    encoder_num_heads: int = Field(16, gt=0)
    decoder_embed_dim: int = Field(1024, gt=0)
    decoder_depth: int = Field(16, gt=0)
    decoder_num_heads: int = Field(16, gt=0)
    mlp_ratio: float = Field(4.0, gt=0)
    class_num: int = Field(1000, gt=0)
    buffer_size: int = Field(64, gt=0)
    diffloss_d: int = Field(3, gt=0)
    diffloss_w: int = Field(1024, gt=0)
    pixel_space: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> MARConfig:
        for part in ("encoder", "decoder"):
            width, heads = getattr(self, f"{part}_embed_dim"), getattr(self, f"{part}_num_heads")
            if width % heads:
                raise ValueError(f"{part}_embed_dim {width} is not a multiple of {part}_num_heads {heads}")
        if self.img_size % (self.vae_stride * self.patch_size):
            raise ValueError(f"img_size {self.img_size} does not divide into tokens")
        return self

    @classmethod
    def preset(cls, name: str) -> MARConfig:
        """A published model: "MAR-B", "MAR-L" or "MAR-H" (256 pixels).

        Raises:
            UnknownName: there is no such preset.
        """
        if name not in PRESETS:
            raise UnknownName.among("MAR preset", name, PRESETS)
        return PRESETS[name]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MARConfig:
        """From `to_dict`, or from constructor arguments of the original class.

        Raises:
            InvalidSetting: a setting that modicum does not know, or of the wrong type or range.
        """
        try:
            return cls(**{key: value for key, value in data.items() if key not in NO_SIZES})
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise InvalidSetting(f"The MAR configuration is not usable: {faults}.", "Correct it.") from error

    def to_dict(self) -> dict[str, Any]:
        """The layout that `from_dict` reads."""
        return {"model_type": self.model_type, **self.model_dump(mode="json")}

    @property
    def kind(self) -> str:
        """What the model is, as the configuration of a DiT says it."""
        return self.model_type

    @property
    def num_classes(self) -> int:
        """Labels are 0 .. num_classes - 1."""
        return self.class_num

    @property
    def input_size(self) -> int:
        """Side of what is drawn: latents, or pixels."""
        return self.img_size // self.vae_stride

    @property
    def in_channels(self) -> int:
        """Channels of what is drawn."""
        return self.vae_embed_dim

    @property
    def depth(self) -> int:
        """Blocks of both stacks."""
        return self.encoder_depth + self.decoder_depth

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return self.img_size // self.vae_stride // self.patch_size

    @property
    def tokens(self) -> int:
        """Tokens of an image."""
        return self.grid**2

    @property
    def channels(self) -> int:
        """Numbers in one token."""
        return self.vae_embed_dim * self.patch_size**2


def _published(width: int, depth: int, heads: int, diffloss_d: int, diffloss_w: int) -> MARConfig:
    return MARConfig(
        encoder_embed_dim=width,
        encoder_depth=depth,
        encoder_num_heads=heads,
        decoder_embed_dim=width,
        decoder_depth=depth,
        decoder_num_heads=heads,
        diffloss_d=diffloss_d,
        diffloss_w=diffloss_w,
    )


PRESETS: dict[str, MARConfig] = {
    "MAR-B": _published(768, 12, 12, 6, 1024),
    "MAR-L": _published(1024, 16, 16, 8, 1280),
    "MAR-H": _published(1280, 20, 16, 12, 1536),
}
