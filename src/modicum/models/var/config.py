"""Sizes of a VAR model and of its VQVAE, with the published presets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from modicum.errors import InvalidSetting, UnknownName
from modicum.models.next_scale import Schedule
from modicum.models.next_scale.autoencoder import Convolutions

# Image side in pixels -> side of every token map, as published.
PATCH_NUMS: dict[int, tuple[int, ...]] = {
    256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    1024: (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}

# Settings of the original constructors that choose kernels or act in training only, in ways that we lack.
_IGNORED = {
    "vae": {"beta", "dropout", "test_mode", "v_patch_nums"},
    "var": {"drop_rate", "attn_drop_rate", "flash_if_available", "fused_if_available", "patch_nums"},
}


class VAEConfig(BaseModel):
    """Sizes of the multi-scale VQVAE.

    Attributes:
        vocab_size: codes in the codebook.
        z_channels: channels of a code and of the feature map.
        ch: channels of the first convolution; `ch_mult` multiplies them level by level.
        ch_mult: one entry per level; every level but the last halves the resolution.
        num_res_blocks: residual blocks per level of the encoder; the decoder has one more.
        share_quant_resi: number of shared residual convolutions; 1: one for all maps, 0: one per map.
        quant_resi: weight of that convolution against the identity.
        default_qresi_counts: how many convolutions `share_quant_resi=0` makes; 0: as many as maps.
        using_znorm: nearest code by angle instead of distance.
        quant_conv_ks: kernel of the convolutions around the quantizer.
        in_channels: of the image.
        groupnorm_groups: groups of every norm.
        groupnorm_eps: epsilon of every norm.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int = Field(4096, gt=0)
    z_channels: int = Field(32, gt=0)
    ch: int = Field(160, gt=0)
    ch_mult: tuple[int, ...] = Field((1, 1, 2, 2, 4), min_length=1)
    num_res_blocks: int = Field(2, gt=0)
    share_quant_resi: int = Field(4, ge=0)
    quant_resi: float = 0.5
    default_qresi_counts: int = Field(0, ge=0)
    using_znorm: bool = False
    quant_conv_ks: int = 3
    in_channels: int = Field(3, gt=0)
    groupnorm_groups: int = Field(32, gt=0)
    groupnorm_eps: float = 1e-6

    @property
    def downsample(self) -> int:
        """Pixels per position of the feature map, along one side."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def convolutions(self) -> Convolutions:
        """Sizes of the encoder and the decoder."""
        return Convolutions(
            in_channels=self.in_channels,
            z_channels=self.z_channels,
            ch=self.ch,
            ch_mult=self.ch_mult,
            num_res_blocks=self.num_res_blocks,
            halvings=len(self.ch_mult) - 1,
            attention=True,
            groups=lambda _: self.groupnorm_groups,
            eps=self.groupnorm_eps,
        )


class VARConfig(BaseModel):
    """Sizes of the transformer, the token maps and the VQVAE.

    Attributes:
        num_classes: labels are 0 .. num_classes - 1; index `num_classes` stands for "no label".
        depth: blocks.
        embed_dim: channels.
        num_heads: attention heads.
        mlp_ratio: hidden channels of the feed-forward layers over `embed_dim`.
        shared_aln: one projection of the condition for all blocks, plus a learned table per block.
        attn_l2_norm: unit queries and keys with a learned temperature (all released models).
        norm_eps: of every layer norm.
        cond_drop_rate: share of labels replaced by "no label" in training.
        drop_path_rate: stochastic depth of the last block in training; rises linearly from 0.
        patch_nums: side of every token map.
        vae: sizes of the VQVAE.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    model_type: ClassVar[str] = "var"

    num_classes: int = Field(1000, gt=0)
    depth: int = Field(16, gt=0)
    embed_dim: int = Field(1024, gt=0)
    num_heads: int = Field(16, gt=0)
    mlp_ratio: float = Field(4.0, gt=0)
    shared_aln: bool = False
    attn_l2_norm: bool = True
    norm_eps: float = 1e-6
    cond_drop_rate: float = Field(0.1, ge=0, le=1)
    drop_path_rate: float = Field(0.0, ge=0, lt=1)
    patch_nums: tuple[int, ...] = PATCH_NUMS[256]
    vae: VAEConfig = VAEConfig()

    @model_validator(mode="after")
    def _consistent(self) -> VARConfig:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        if not self.patch_nums or min(self.patch_nums) < 1:
            raise ValueError(f"patch_nums {self.patch_nums} must name at least one map of side 1 or more")
        return self

    @classmethod
    def of_depth(cls, depth: int, pixels: int = 256, *, shared_aln: bool = False) -> VARConfig:
        """The published proportions: 64 channels and one head per block."""
        return cls(
            depth=depth,
            embed_dim=64 * depth,
            num_heads=depth,
            shared_aln=shared_aln,
            drop_path_rate=0.1 * depth / 24,
            patch_nums=PATCH_NUMS[pixels],
        )

    @classmethod
    def preset(cls, name: str) -> VARConfig:
        """A published model: "d16", "d20", "d24", "d30" (256 pixels) or "d36" (512 pixels).

        Raises:
            UnknownName: there is no such preset.
        """
        if name not in PRESETS:
            raise UnknownName.among("VAR preset", name, PRESETS)
        return PRESETS[name]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> VARConfig:
        """From `to_dict`, or from constructor arguments of the original classes.

        Args:
            data: "vae" and "var" hold the arguments of the two constructors, "patch_nums" the map sides;
                entries beside them that are no sizes are ignored.

        Raises:
            InvalidSetting: a setting that modicum does not know, or of the wrong type or range.
        """
        vae, var = dict(data.get("vae", {})), dict(data.get("var", {}))
        sides = data.get("patch_nums") or var.get("patch_nums") or vae.get("v_patch_nums") or PATCH_NUMS[256]
        vae |= {key: data[key] for key in ("groupnorm_groups", "groupnorm_eps") if key in data}
        vae = {key: value for key, value in vae.items() if key not in _IGNORED["vae"]}
        var = {key: value for key, value in var.items() if key not in _IGNORED["var"]}
        try:
            return cls(**var, patch_nums=tuple(sides), vae=VAEConfig(**vae))
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise InvalidSetting(f"The VAR configuration is not usable: {faults}.", "Correct it.") from error

    def to_dict(self) -> dict[str, Any]:
        """The layout that `from_dict` reads."""
        data = self.model_dump(mode="json")
        vae, sides = data.pop("vae"), data.pop("patch_nums")
        return {"vae": vae, "var": data, "patch_nums": sides}

    @property
    def schedule(self) -> Schedule:
        """The token maps."""
        return Schedule.square(self.patch_nums)

    @property
    def pixels(self) -> int:
        """Side of the image."""
        return self.patch_nums[-1] * self.vae.downsample


PRESETS: dict[str, VARConfig] = {
    "d16": VARConfig.of_depth(16),
    "d20": VARConfig.of_depth(20),
    "d24": VARConfig.of_depth(24),
    "d30": VARConfig.of_depth(30),
    "d36": VARConfig.of_depth(36, 512, shared_aln=True),
}
