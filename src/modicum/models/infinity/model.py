"""Infinity as a whole: prompts to images, images to bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from modicum.errors import InvalidSetting
from modicum.models.infinity import bsq
from modicum.models.infinity.autoencoder import BSQVAE
from modicum.models.infinity.conditioning import Condition
from modicum.models.infinity.config import InfinityConfig
from modicum.models.infinity.positions import rotary_table, rotation
from modicum.models.infinity.schedules import Pixels, Resolution
from modicum.models.infinity.text import Prompts, TextEncoder, TextFeatures, features_of
from modicum.models.infinity.transformer import Transformer
from modicum.models.next_scale import (
    AttentionShape,
    KVCache,
    NextScaleModel,
    Step,
    draw,
    generators,
    keep_top_k,
    keep_top_p,
    per_map,
)
from modicum.models.next_scale.sampling import PerMap, Seed


@dataclass(frozen=True)
class MapStep:
    """One map of a generation.

    Attributes:
        scale: its index.
        logits: after temperature and guidance, before the filters, float32 `[B, tokens, 2 D]`.
        bits: bool `[B, h, w, d]`, at the positions of the feature map.
        summed: features so far, float32 `[B, d, H, W]`.
        next_input: the features at the size of the next map, `[B, tokens, D]`; None after the last.
    """

    scale: int
    logits: Tensor
    bits: Tensor
    summed: Tensor
    next_input: Tensor | None


class Infinity(NextScaleModel):
    """Transformer and tokenizer of one configuration.

    Args:
        config: sizes.
        dtype: of the blocks of the transformer; everything else is float32.

    Attributes:
        text_encoder: turns prompts into features; without it, features must be given.
    """

    text_encoder: TextEncoder | None = None

    def __init__(self, config: InfinityConfig, dtype: torch.dtype = torch.float32) -> None:
        shape = AttentionShape(config.depth, config.num_heads, config.head_dim)
        super().__init__(Resolution.of(1.0, config.pixels).schedule, shape)
        self.config = config
        self.transformer = Transformer(config, dtype)
        self.vae = BSQVAE(config.vae)

    def generate(
        self,
        prompts: Prompts,
        *,
        negative: Prompts | None = None,
        ratio: float = 1.0,
        pixels: Pixels | None = None,
        resolution: Resolution | None = None,
        count: int = 1,
        cfg: PerMap = 3.0,
        tau: PerMap = 1.0,
        top_k: int = 0,
        top_p: float = 0.97,
        seed: Seed = None,
        cache: KVCache | None = None,
        text_kv: Literal["once", "recompute"] = "once",
        round_text: bool = False,
    ) -> Tensor:
        """Draw images.

        Args:
            prompts: one, several, or their features.
            negative: what to be led away from, one for all or one per prompt; the learned "no text" by default.
            ratio: height / width; the nearest that the model was trained for is taken.
            pixels: how many in all; as many as the model was trained for by default.
            resolution: other token maps, in place of `ratio` and `pixels`.
            count: images per prompt.
            cfg: guidance, cfg * conditional + (1 - cfg) * unconditional, for all maps or one per map. 1
                everywhere runs no unconditional rows.
            tau: temperature, for all maps or one per map (published: 0.5 for 2b, 1 for 8b).
            top_k: 1 takes the likelier value of every bit; 0 and 2 exclude none.
            top_p: a value of a bit less likely than 1 - top_p is never drawn; 0 excludes none.
            seed: one for the batch, or one per image, which makes an image independent of its neighbours.
            cache: keys and values; of `make_cache` by default.
            text_kv: keys and values of the text are computed once and kept, or again for every map.
            round_text: round queries, keys and values of text to bfloat16, as the original does in float32 too.

        Returns:
            Images in [0, 1], float32 `[B, in_channels, height, width]`.

        Raises:
            InvalidSetting: prompts that are too long, or strings without a text encoder; a number out of range;
                values per map or seeds in the wrong number.
        """
        *_, last = self.steps(
            prompts,
            negative=negative,
            ratio=ratio,
            pixels=pixels,
            resolution=resolution,
            count=count,
            cfg=cfg,
            tau=tau,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            cache=cache,
            text_kv=text_kv,
            round_text=round_text,
        )
        return self.picture(last.summed)

    @torch.no_grad()
    def steps(
        self,
        prompts: Prompts,
        *,
        negative: Prompts | None = None,
        ratio: float = 1.0,
        pixels: Pixels | None = None,
        resolution: Resolution | None = None,
        count: int = 1,
        cfg: PerMap = 3.0,
        tau: PerMap = 1.0,
        top_k: int = 0,
        top_p: float = 0.97,
        seed: Seed = None,
        cache: KVCache | None = None,
        text_kv: Literal["once", "recompute"] = "once",
        round_text: bool = False,
    ) -> Iterator[MapStep]:
        """Generate map by map; the arguments are those of `generate`."""
        resolution = resolution or Resolution.of(ratio, pixels or self.config.pixels)
        schedule, patch, transformer = resolution.schedule, self.config.patch, self.transformer
        guidance, temperature = (
            per_map("cfg", cfg, len(schedule)),
            per_map("tau", tau, len(schedule), above=0),
        )
        texts = self._texts(prompts, negative, guided=any(value != 1 for value in guidance))
        images = count * len(texts[0])
        streams = generators(seed, images, transformer.device)
        rows = [text.to(transformer.device).repeat(count) for text in texts]
        features, mask = TextFeatures.joined(rows).padded()
        condition = transformer.condition(features, mask, keep=text_kv == "once", rounded=round_text)
        cache = cache if cache is not None else self.make_cache()
        cache.begin(schedule)
        table = rotary_table(resolution, self.config.head_dim, transformer.device)
        levels = transformer.levels(schedule)
        sizes = bsq.grid(schedule, patch)
        x = transformer.first_input(condition)
        summed = torch.zeros(images, self.config.vae.codebook_dim, *sizes[-1], device=x.device)
        for scale, size in enumerate(schedule.sizes):
            step = Step(scale, cache, rotate=rotation(table[:, schedule.span(scale)]))
            hidden = transformer.run(x, levels[scale : scale + 1], condition, step)
            logits = self._guided(hidden, condition, images, guidance[scale]) / temperature[scale]
            pairs = keep_top_p(keep_top_k(logits.view(images, -1, 2), top_k), top_p)
            bits = bsq.unpatchify(draw(pairs, streams).bool().view(*logits.shape[:2], -1), size, patch)
            summed = summed + bsq.resize(bsq.to_codes(bits), sizes[-1])
            next_input = None
            if scale + 1 < len(schedule):
                next_input = bsq.patchify(bsq.resize(summed, sizes[scale + 1]), patch)
                x = transformer.map_input(next_input).repeat(len(texts), 1, 1)
            yield MapStep(scale, logits, bits, summed, next_input)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the blocks of the transformer."""
        return self.transformer.dtype

    @torch.no_grad()
    def picture(self, summed: Tensor) -> Tensor:
        """Image in [0, 1] of summed codes `[B, d, H, W]`, finished or not."""
        return (self.vae.picture(summed.to(self.vae.decoder.norm_out.weight.dtype)).float() + 1) / 2

    @torch.no_grad()
    def encode(self, images: Tensor, resolution: Resolution | None = None) -> list[Tensor]:
        """Bits, bool `[B, h, w, d]`, of every map of images in [0, 1].

        Args:
            images: `[B, in_channels, height, width]`.
            resolution: of the token maps; by default those of the images' ratio.

        Raises:
            InvalidSetting: the images do not have the size of the last map.
        """
        height, width = images.shape[-2:]
        resolution = resolution or Resolution.of(height / width, self.config.pixels)
        wanted = [self.config.pixels_per_token * side for side in resolution.schedule.final]
        if [height, width] != wanted:
            raise InvalidSetting(
                f"Images of {height} x {width} pixels do not fit maps up to {resolution.schedule.final}.",
                f"Give images of {wanted[0]} x {wanted[1]} pixels, or another resolution.",
            )
        return self.vae.encode(images * 2 - 1, bsq.grid(resolution.schedule, self.config.patch))

    @torch.no_grad()
    def decode(self, bits: Sequence[Tensor], resolution: Resolution | None = None) -> Tensor:
        """Image in [0, 1] of all maps of bits, or of the first few.

        Args:
            bits: bool `[B, h, w, d]` per map.
            resolution: of the image; by default the last given map is its last.
        """
        _, height, width, _ = bits[-1].shape
        if resolution is not None:
            height, width = bsq.grid(resolution.schedule, self.config.patch)[-1]
        return self.picture(bsq.running(bits, (height, width))[-1])

    def teacher_input(self, bits: Sequence[Tensor], resolution: Resolution) -> Tensor:
        """What the transformer reads for maps 1, 2, ... if the bits of all maps are these: `[B, L - 1, D]`."""
        return bsq.teacher_input(bits, bsq.grid(resolution.schedule, self.config.patch), self.config.patch)

    def _guided(self, hidden: Tensor, condition: Condition, images: int, cfg: float) -> Tensor:
        """Logits `[B, tokens, 2 D]`; without guidance the unconditional rows do not reach the head."""
        if cfg == 1:
            return self.transformer.logits(hidden[:images], condition.pooled[:images])
        given, without = self.transformer.logits(hidden, condition.pooled).chunk(2)
        return cfg * given + (1 - cfg) * without

    def _texts(self, prompts: Prompts, negative: Prompts | None, *, guided: bool) -> list[TextFeatures]:
        """Texts of the conditional rows, and of as many unconditional ones if there is guidance."""
        given = features_of(prompts, self.text_encoder, self.config)
        if not guided:
            return [given]
        away = None if negative is None else features_of(negative, self.text_encoder, self.config)
        return [given, given.opposite(away, self.transformer.cfg_uncond)]
