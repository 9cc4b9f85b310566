"""Sizes of a diffusion transformer, with the published presets of DiT, SiT and TinyDiT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from modicum.errors import InvalidSetting, UnknownName

Kind = Literal["dit", "sit"]
NO_SIZES = ("model_type", "dfloat11_config")  # what config.json says beside the sizes
LATENT_DOWNSAMPLE = 8  # pixels per latent position, along one side


class DiTConfig(BaseModel):
    """Sizes under the argument names of the original constructors, and what the numbers mean.

    A model whose depth was pruned is a configuration with fewer blocks.

    Attributes:
        input_size: side of what is denoised: latents (pixels / 8), or pixels.
        patch_size: side of the square that becomes one token.
        in_channels: of what is denoised.
        hidden_size: channels of a token.
        depth: blocks.
        num_heads: attention heads.
        mlp_ratio: hidden channels of the feed-forward layers over `hidden_size`.
        class_dropout_prob: share of labels replaced by "no label" in training; 0: there is no such label.
        num_classes: labels are 0 .. num_classes - 1; index `num_classes` stands for "no label".
        learn_sigma: twice as many channels come out: the second half is the variance (SiT discards it).
        kind: "dit" predicts the noise of a diffusion with 1000 steps, "sit" the velocity of a flow.
        pixel_space: whether the model draws pixels in [-1, 1] instead of the latents of an autoencoder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    model_type: ClassVar[str] = "dit"

    input_size: int = Field(32, gt=0)
    patch_size: int = Field(2, gt=0)
    in_channels: int = Field(4, gt=0)
    hidden_size: int = Field(1152, gt=0)
    depth: int = Field(28, gt=0)
    num_heads: int = Field(16, gt=0)
    mlp_ratio: float = Field(4.0, gt=0)
    class_dropout_prob: float = Field(0.1, ge=0, le=1)
    num_classes: int = Field(1000, gt=0)
    learn_sigma: bool = True
    kind: Kind = "dit"
    pixel_space: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> DiTConfig:
        if self.input_size % self.patch_size:
            raise ValueError(
                f"input_size {self.input_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if self.hidden_size % 4:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of 4, as the positions need")
        return self

    @classmethod
    def preset(cls, name: str, *, pixels: int = 256) -> DiTConfig:
        """A published model: "DiT-XL/2", "SiT-B/4", "TinyDiT-D14", ...

        Args:
            name: kind, size S, B, L or XL, and patch size 2, 4 or 8; or TinyDiT-D19, -D14, -D7.
            pixels: side of the image that the latents stand for.

        Raises:
            UnknownName: there is no such preset.
        """
        if name not in PRESETS:
            raise UnknownName.among("DiT preset", name, PRESETS)
        return cls(**(PRESETS[name].model_dump() | {"input_size": pixels // LATENT_DOWNSAMPLE}))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DiTConfig:
        """From `to_dict`, or from constructor arguments of the original class.

        Args:
            data: the arguments, or an object that holds them under "model" beside entries of other meaning.

        Raises:
            InvalidSetting: a setting that modicum does not know, or of the wrong type or range.
        """
        sizes = {key: value for key, value in data.get("model", data).items() if key not in NO_SIZES}
        try:
            return cls(**sizes)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise InvalidSetting(f"The DiT configuration is not usable: {faults}.", "Correct it.") from error

    def to_dict(self) -> dict[str, Any]:
        """The layout that `from_dict` reads."""
        return {"model_type": self.model_type, **self.model_dump(mode="json")}

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return self.input_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Tokens of an image."""
        return self.grid**2

    @property
    def out_channels(self) -> int:
        """Channels that the last layer computes."""
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.hidden_size // self.num_heads

    def macs(self) -> int:
        """Multiplications of one forward pass of one image; guidance doubles them."""
        width, tokens, pixels = self.hidden_size, self.tokens, self.patch_size**2
        hidden = int(width * self.mlp_ratio)
        block = tokens * width * (4 * width + 2 * hidden + 2 * tokens) + 6 * width**2
        ends = tokens * pixels * width * (self.in_channels + self.out_channels)
        return self.depth * block + ends + width * (TIME_FEATURES + 3 * width)


TIME_FEATURES = 256  # sines and cosines of the time that the network reads

_SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
_KINDS: dict[str, Kind] = {"DiT": "dit", "SiT": "sit"}
PRESETS: dict[str, DiTConfig] = {
    f"{family}-{size}/{patch}": DiTConfig(
        hidden_size=width, depth=depth, num_heads=heads, patch_size=patch, kind=kind
    )
    for family, kind in _KINDS.items()
    for size, (width, depth, heads) in _SIZES.items()
    for patch in (2, 4, 8)
}
PRESETS |= {f"TinyDiT-D{depth}": DiTConfig(depth=depth) for depth in (19, 14, 7)}
