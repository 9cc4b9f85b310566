"""Sizes of an Infinity model and of its tokenizer, with the published presets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from modicum.errors import InvalidSetting, UnknownName
from modicum.models.infinity.schedules import Pixels
from modicum.models.next_scale.autoencoder import Convolutions

# Settings of the original constructors that choose kernels, act in training only, or follow from others.
_IGNORED = {
    "block_chunks",
    "drop_path_rate",
    "drop_rate",
    "cond_drop_rate",
    "rand_uncond",
    "checkpointing",
    "pad_to_multiplier",
    "use_flex_attn",
    "customized_flash_attn",
    "fused_mlp",
    "fused_norm",
    "inference_mode",
    "ffn_hidden_rule",
}
# Settings whose other values no released model uses; modicum has the released value only.
_RELEASED: dict[str, Any] = {
    "shared_aln": True,
    "cos_attn": True,
    "use_bit_label": True,
    "rope2d_each_sa_layer": True,
    "rope2d_normalized_by_hw": 2,
    "add_lvl_embeding_only_first_block": True,
    "swiglu": False,
    "rms_norm": False,
    "nm0": False,
    "head_aln": True,
    "head_depth": 1,
    "cross_attn_layer_scale": -1,
    "tau": 1,
}
_FOLLOWS = ("ffn_hidden", "head_dim", "text_pool_heads", "d_vae")


class BSQVAEConfig(BaseModel):
    """Sizes of the tokenizer.

    Attributes:
        codebook_dim: bits of a position of the feature map.
        base_ch: channels of the first convolution; `ch_mult` multiplies them level by level.
        ch_mult: one entry per level.
        num_res_blocks: residual blocks per level of the encoder; the decoder has one more.
        patch_size: pixels per position of the feature map, along one side: a power of two.
        in_channels: of the image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    codebook_dim: int = Field(32, gt=0)
    base_ch: int = Field(128, gt=0)
    ch_mult: tuple[int, ...] = Field((1, 2, 4, 4, 4), min_length=1)
    num_res_blocks: int = Field(2, gt=0)
    patch_size: int = Field(16, gt=0)
    in_channels: int = Field(3, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> BSQVAEConfig:
        if self.patch_size.bit_count() != 1 or self.halvings >= len(self.ch_mult):
            raise ValueError(f"patch_size {self.patch_size} is not 2^0 .. 2^{len(self.ch_mult) - 1}")
        for width in {self.base_ch * factor for factor in (1, *self.ch_mult)}:
            if width % 32 and width % 24:
                raise ValueError(f"{width} channels do not divide into 32 or 24 groups")
        return self

    @property
    def halvings(self) -> int:
        """How often the encoder halves the resolution."""
        return self.patch_size.bit_length() - 1

    @property
    def convolutions(self) -> Convolutions:
        """Sizes of the encoder and the decoder."""
        return Convolutions(
            in_channels=self.in_channels,
            z_channels=self.codebook_dim,
            ch=self.base_ch,
            ch_mult=self.ch_mult,
            num_res_blocks=self.num_res_blocks,
            halvings=self.halvings,
            attention=False,
            groups=lambda channels: 24 if channels % 32 else 32,
            eps=1e-6,
        )


class InfinityConfig(BaseModel):
    """Sizes of the transformer and the tokenizer.

    Attributes:
        embed_dim: channels.
        depth: blocks.
        num_heads: attention heads.
        mlp_ratio: hidden channels of the feed-forward layers over `embed_dim`, before rounding to 256.
        text_channels: of the text encoder's features.
        text_maxlen: most tokens of a prompt.
        apply_spatial_patchify: a token stands for 2 x 2 positions of the feature map.
        norm_eps: of every norm of the transformer.
        lvl_embed_rows: most maps of an image.
        pixels: of the images that the model was trained for.
        vae: sizes of the tokenizer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    model_type: ClassVar[str] = "infinity"

    embed_dim: int = Field(2048, gt=0)
    depth: int = Field(32, gt=0)
    num_heads: int = Field(16, gt=0)
    mlp_ratio: float = Field(4.0, gt=0)
    text_channels: int = Field(2048, gt=0)
    text_maxlen: int = Field(512, gt=0)
    apply_spatial_patchify: bool = False
    norm_eps: float = Field(1e-6, gt=0)
    lvl_embed_rows: int = Field(15, gt=0)
    pixels: Pixels = "1M"
    vae: BSQVAEConfig = BSQVAEConfig()

    @model_validator(mode="after")
    def _consistent(self) -> InfinityConfig:
        if self.embed_dim % (4 * self.num_heads):
            raise ValueError(f"embed_dim {self.embed_dim} over {self.num_heads} heads is no multiple of 4")
        if self.ffn_hidden < 1:
            raise ValueError(f"mlp_ratio {self.mlp_ratio} leaves no hidden channels")
        if self.text_pool_heads < 1 or self.embed_dim % self.text_pool_heads:
            raise ValueError(
                f"text_channels {self.text_channels} give no whole heads of {self.embed_dim} channels"
            )
        return self

    @property
    def head_dim(self) -> int:
        """Channels of an attention head."""
        return self.embed_dim // self.num_heads

    @property
    def ffn_hidden(self) -> int:
        """Hidden channels of the feed-forward layers: a multiple of 256, half a step to the even one."""
        return round(self.embed_dim * self.mlp_ratio / 256) * 256

    @property
    def text_pool_heads(self) -> int:
        """Heads of the attention that pools the text."""
        return self.text_channels // (64 if self.embed_dim > 4096 else 128)

    @property
    def patch(self) -> int:
        """Positions of the feature map per token, along one side."""
        return 2 if self.apply_spatial_patchify else 1

    @property
    def d_vae(self) -> int:
        """Bits of a token."""
        return self.vae.codebook_dim * self.patch**2

    @property
    def pixels_per_token(self) -> int:
        """Pixels per token, along one side."""
        return self.vae.patch_size * self.patch

    @classmethod
    def preset(cls, name: str) -> InfinityConfig:
        """A published model: "2b", "8b", "8b-512", or "layer12" ... "layer48" of the scaling study.

        Raises:
            UnknownName: there is no such preset.
        """
        if name not in PRESETS:
            raise UnknownName.among("Infinity preset", name, PRESETS)
        return PRESETS[name]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> InfinityConfig:
        """From `to_dict`, or from constructor arguments of the original classes.

        Args:
            data: "model" and "vae" hold the arguments of the two constructors; entries beside them are ignored.

        Raises:
            InvalidSetting: a setting that modicum does not know, of the wrong type or range, or with a value
                that no released model has.
        """
        model, vae = dict(data.get("model", {})), dict(data.get("vae", {}))
        for name, released in _RELEASED.items():
            if model.pop(name, released) != released:
                raise InvalidSetting(
                    f"The Infinity configuration has another {name} than {released!r}.",
                    "No released model has that; modicum cannot run it.",
                )
        derived = {name: model.pop(name) for name in _FOLLOWS if name in model}
        model = {name: value for name, value in model.items() if name not in _IGNORED}
        try:
            config = cls(**model, vae=BSQVAEConfig(**vae))
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise InvalidSetting(
                f"The Infinity configuration is not usable: {faults}.", "Correct it."
            ) from error
        for name, value in derived.items():
            if getattr(config, name) != value:
                raise InvalidSetting(
                    f"The Infinity configuration has {name} {value}, but its sizes give {getattr(config, name)}.",
                    f"Leave {name} out, or correct the sizes.",
                )
        return config

    def to_dict(self) -> dict[str, Any]:
        """The layout that `from_dict` reads."""
        model = self.model_dump(mode="json")
        return {"vae": model.pop("vae"), "model": model}


def _scaling(depth: int, embed_dim: int, num_heads: int) -> InfinityConfig:
    return InfinityConfig(depth=depth, embed_dim=embed_dim, num_heads=num_heads)


_8B = InfinityConfig(
    embed_dim=3584,
    depth=40,
    num_heads=28,
    apply_spatial_patchify=True,
    vae=BSQVAEConfig(codebook_dim=14, ch_mult=(1, 2, 4, 4), patch_size=8),
)
PRESETS: dict[str, InfinityConfig] = {
    "2b": InfinityConfig(),
    "8b": _8B,
    "8b-512": _8B.model_copy(update={"pixels": "0.25M"}),
    "layer12": _scaling(12, 768, 8),
    "layer16": _scaling(16, 1152, 12),
    "layer24": _scaling(24, 1536, 16),
    "layer32": _scaling(32, 2080, 20),
    "layer40": _scaling(40, 2688, 24),
    "layer48": _scaling(48, 3360, 28),
}
