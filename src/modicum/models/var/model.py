"""VAR as a whole: labels to images, images to tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modicum.errors import InvalidSetting
from modicum.models.next_scale import (
    AttentionShape,
    KVCache,
    NextScaleModel,
    Step,
    draw,
    generators,
    keep_top_k,
    keep_top_p,
    soft_choice,
)
from modicum.models.next_scale.sampling import Seed
from modicum.models.var.config import VARConfig
from modicum.models.var.transformer import Transformer
from modicum.models.var.vqvae import VQVAE

Labels = int | Sequence[int] | Tensor | None


@dataclass(frozen=True)
class MapStep:
    """One map of a generation.

    Attributes:
        scale: its index.
        logits: after guidance, before the filters, float32 `[B, tokens, V]`.
        filtered: the same with excluded codes at -inf.
        tokens: int64 `[B, tokens]`.
        f_hat: features so far, float32 `[B, D, H, W]`.
        next_map: the features at the size of the next map, `[B, D, h, w]`; None after the last.
    """

    scale: int
    logits: Tensor
    filtered: Tensor
    tokens: Tensor
    f_hat: Tensor
    next_map: Tensor | None


class VAR(NextScaleModel):
    """Transformer and VQVAE of one configuration.

    Args:
        config: sizes.
    """

    def __init__(self, config: VARConfig) -> None:
        shape = AttentionShape(config.depth, config.num_heads, config.embed_dim // config.num_heads)
        super().__init__(config.schedule, shape)
        self.config = config
        self.transformer = Transformer(config)
        self.vae = VQVAE(config.vae, self.schedule)

    def generate(
        self,
        labels: Labels = None,
        *,
        count: int = 1,
        cfg: float = 1.5,
        top_k: int = 900,
        top_p: float = 0.96,
        seed: Seed = None,
        cache: KVCache | None = None,
        more_smooth: bool = False,
    ) -> Tensor:
        """Draw images.

        Args:
            labels: one class, several, or None for random ones; `config.num_classes` is "no label".
            count: images per label.
            cfg: guidance at the last map; it rises linearly from none at the first. 0 runs no
                unconditional rows.
            top_k: codes that may be drawn; 0: all.
            top_p: probability that they must cover; 0: all.
            seed: one for the batch, or one per image, which makes an image independent of its neighbours.
            cache: keys and values; of `make_cache` by default.
            more_smooth: blend codes instead of choosing one (for the eye, not for metrics).

        Returns:
            Images in [0, 1], float32 `[B, in_channels, side, side]`.

        Raises:
            InvalidSetting: a label, a count or a guidance out of range, or a wrong number of seeds.
        """
        steps = self.steps(
            labels,
            count=count,
            cfg=cfg,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            cache=cache,
            more_smooth=more_smooth,
        )
        *_, last = steps
        return self.picture(last.f_hat)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the transformer."""
        return self.transformer.dtype

    @torch.no_grad()
    def picture(self, f_hat: Tensor) -> Tensor:
        """Image in [0, 1] of features `[B, D, H, W]`, finished or not."""
        return (self.vae.picture(f_hat.to(self.vae.post_quant_conv.weight.dtype)).float() + 1) / 2

    @torch.no_grad()
    def encode(self, images: Tensor) -> list[Tensor]:
        """Tokens int64 `[B, tokens]` of every map of images in [0, 1]."""
        return self.vae.encode(images * 2 - 1)

    @torch.no_grad()
    def decode(self, tokens: Sequence[Tensor]) -> Tensor:
        """Image in [0, 1] of all token maps, or of the first few."""
        return self.picture(self.vae.quantize.running(tokens)[-1])

    def steps(
        self,
        labels: Labels = None,
        *,
        count: int = 1,
        cfg: float = 1.5,
        top_k: int = 900,
        top_p: float = 0.96,
        seed: Seed = None,
        cache: KVCache | None = None,
        more_smooth: bool = False,
    ) -> Iterator[MapStep]:
        """Generate map by map; the arguments are those of `generate`."""
        rows, streams = self._labels(labels, count, cfg, seed)
        cache = cache if cache is not None else self.make_cache()
        cache.begin(self.schedule)
        condition, x = self._start(rows, guided=cfg > 0)
        f_hat = self.vae.quantize.embedding.weight.new_zeros(
            len(rows), self.config.vae.z_channels, *self.schedule.final, dtype=torch.float32
        )
        for scale in range(len(self.schedule)):
            logits = self._logits(x, condition, Step(scale, cache), len(rows), cfg)
            filtered = keep_top_p(keep_top_k(logits, top_k), top_p)
            with torch.no_grad():
                tokens = draw(filtered, streams)
                weights = (
                    soft_choice(filtered, self.schedule.progress(scale), streams) if more_smooth else None
                )
                f_hat = f_hat + self._added(scale, tokens, weights)
                next_map = (
                    self.vae.quantize.shrink(f_hat, scale + 1) if scale + 1 < len(self.schedule) else None
                )
                if next_map is not None:
                    x = self._next_input(next_map, len(condition) // len(rows))
            yield MapStep(scale, logits, filtered, tokens, f_hat, next_map)

    @torch.no_grad()
    def _start(self, labels: Tensor, *, guided: bool) -> tuple[Tensor, Tensor]:
        """Class embeddings, conditional rows first `[R, C]`, and what the first map reads."""
        if guided:
            labels = torch.cat((labels, torch.full_like(labels, self.transformer.null_label)))
        condition = self.transformer.class_emb(labels)
        return condition, self.transformer.first_input(condition)

    @torch.no_grad()
    def _logits(self, x: Tensor, condition: Tensor, step: Step, images: int, cfg: float) -> Tensor:
        """Guided logits `[B, tokens, V]`: (1 + t) conditional - t unconditional."""
        logits = self.transformer.map_pass(x, condition, step)
        if len(logits) == images:
            return logits
        t = cfg * self.schedule.progress(step.scale)
        return (1 + t) * logits[:images] - t * logits[images:]

    def _added(self, scale: int, tokens: Tensor, weights: Tensor | None) -> Tensor:
        """What the drawn map adds to the features, `[B, D, H, W]`."""
        quantizer = self.vae.quantize
        codes = quantizer.lookup(tokens) if weights is None else weights @ quantizer.embedding.weight
        return quantizer.contribution(scale, codes)

    def _next_input(self, next_map: Tensor, copies: int) -> Tensor:
        """What the next map reads, once per group of rows: `[R, tokens, C]`."""
        tokens = next_map.flatten(2).transpose(1, 2).to(self.transformer.dtype)  # [B, tokens, D]
        return self.transformer.word_embed(tokens).repeat(copies, 1, 1)

    def _labels(
        self, labels: Labels, count: int, cfg: float, seed: Seed
    ) -> tuple[Tensor, list[torch.Generator] | None]:
        """Validated labels int64 `[B]` and the streams of randomness; random labels come out of the stream."""
        classes, device = self.config.num_classes, self.transformer.pos_start.device
        if count < 1 or cfg < 0:
            raise InvalidSetting(
                f"count is {count}, cfg is {cfg}.", "Ask for 1 image or more, guidance from 0."
            )
        if labels is None:
            streams = generators(seed, count, device)
            if streams is not None and len(streams) > 1:
                drawn = [torch.randint(classes, (1,), device=device, generator=one) for one in streams]
                return torch.cat(drawn), streams
            flat = torch.full((classes,), 1 / classes, device=device)
            source = streams[0] if streams else None
            return torch.multinomial(flat, count, replacement=True, generator=source), streams
        given = torch.as_tensor(labels, dtype=torch.long, device=device).reshape(-1).repeat_interleave(count)
        if given.numel() == 0 or int(given.min()) < 0 or int(given.max()) > classes:
            raise InvalidSetting(
                f"{given.unique().tolist()} are not all labels of this model.",
                f"Labels go from 0 to {classes - 1}.",
            )
        return given, generators(seed, len(given), device)
