"""The generator: a monochrome frame with gaps, and what the sensors said -> a colour picture.

    generator = Generator.load("pixelgen-nano")
    pictures = generator.generate(frames, mask, tokens, steps=4)

Luma is kept exactly where a pixel arrived; colour, and luma where nothing arrived, is painted. It is plausible, not
true. Colour is seldom decided by a grey frame: many pictures fit, and `temperature` says how much of that variety is
painted. At 1 every seed gives another of the pictures that fit; at 0 all seeds give one picture near the mean of them,
which is paler, and nearer to the truth on average.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from modicum.apps.pixelgen.generator.canvas import CELL, Known
from modicum.apps.pixelgen.generator.diffusion import Velocity, paint
from modicum.apps.pixelgen.generator.enlarge import enlarged, reduced
from modicum.apps.pixelgen.generator.network import PixelNetwork
from modicum.apps.pixelgen.generator.tiles import Tiles
from modicum.apps.pixelgen.generator.upscale import Upscaler
from modicum.errors import InvalidSetting

AT_ONCE = 64  # tiles in one pass of the network


class Generator:
    """A network with the way to use it.

    Args:
        network: in evaluation mode.
        steps: passes per picture, unless `generate` says otherwise.
        temperature: likewise.
        upscaler: brings reduced pictures to full size, and finds lost luma; None does it the simple way.

    Attributes:
        network: may be compressed in place.
    """

    def __init__(
        self,
        network: PixelNetwork,
        steps: int = 4,
        temperature: float = 0.0,
        upscaler: Upscaler | None = None,
    ) -> None:
        self.network, self.steps, self.temperature = network, steps, temperature
        self.upscaler = upscaler

    @classmethod
    def load(cls, model: str | Path, *, device: str = "cpu") -> Generator:
        """Open a directory that modicum wrote, or the shipped generator of that name.

        Raises:
            UnknownName: neither a directory nor a shipped generator.
            CheckpointError: a file is missing, unreadable, or at odds with the config.
        """
        from modicum.apps.pixelgen.generator.files import load

        return load(model, device)

    @torch.no_grad()
    def generate(
        self,
        frames: Tensor,
        mask: Tensor,
        tokens: Tensor,
        *,
        steps: int | None = None,
        guidance: float = 1.0,
        temperature: float | None = None,
        stride: int = 12,
        reduce: int = 1,
        seed: int = 0,
    ) -> Tensor:
        """Paint colour pictures.

        Args:
            frames: float `[B, 1, H, W]` in [0, 1]; what stands where nothing arrived does not matter.
            mask: bool `[B, 1, H, W]`, True where a pixel arrived.
            tokens: int64 `[B, positions]` of `SensorTokens`, 0 where nothing is known.
            steps: passes of the network over every tile.
            guidance: how much the readings are exaggerated; 1 is as trained, and costs half of any other value.
            temperature: share of the noise that painting begins with, 0 to 1.
            stride: distance of neighbouring tiles in cells of 2 pixels.
            reduce: paint at this fraction of the size, luma excepted; see `enlarge` and `upscale`.
            seed: of the noise.

        Returns:
            float32 `[B, 3, H, W]` in [0, 1], on the device of the network.

        Raises:
            InvalidSetting: shapes or values that do not fit.
        """
        steps = self.steps if steps is None else steps
        temperature = self.temperature if temperature is None else temperature
        self._check(frames, mask, tokens, steps, temperature, stride, reduce)
        device = self.network.device
        frames, mask, tokens = (
            frames.to(device, torch.float32).clamp(0, 1),
            mask.to(device),
            tokens.to(device),
        )

        def painted(frames: Tensor, mask: Tensor) -> Tensor:
            return self._paint(frames, mask, tokens, steps, guidance, temperature, stride, seed)

        small = painted(frames, mask) if reduce == 1 else painted(*reduced(frames, mask, reduce))
        if reduce == 1 and (self.upscaler is None or bool(mask.all())):
            return small
        if self.upscaler is None:
            return enlarged(small, frames, mask, reduce)
        likely = guidance == 1 and temperature == 0  # others were asked for, and are not drawn back
        return self.upscaler(small, frames, mask, reduce, painted=likely)

    def _paint(
        self,
        frames: Tensor,
        mask: Tensor,
        tokens: Tensor,
        steps: int,
        guidance: float,
        temperature: float,
        stride: int,
        seed: int,
    ) -> Tensor:
        side, height, width = self.network.config.input_size, frames.shape[-2], frames.shape[-1]
        margins = (0, max(-width % CELL, CELL * side - width), 0, max(-height % CELL, CELL * side - height))
        known = Known.of(F.pad(frames, margins), F.pad(mask, margins))
        noise = torch.randn(known.unknown.shape, generator=torch.Generator().manual_seed(seed)).to(frames)
        tiles = Tiles(known.unknown.shape[-2], known.unknown.shape[-1], side, stride)
        network = self._over_tiles(known, tiles, tokens, guidance)
        state = paint(network, temperature * noise * known.unknown, steps)
        return known.pictures(state)[:, :, :height, :width]

    def _over_tiles(self, known: Known, tiles: Tiles, tokens: Tensor, guidance: float) -> Velocity:
        """The velocity of a whole state, put together from its tiles."""
        given, told = tiles.cut(known.channels), tokens.repeat_interleave(tiles.count, 0)

        def velocity(state: Tensor, t: Tensor) -> Tensor:
            x = torch.cat((tiles.cut(state), given), dim=1)
            times = t[:1].expand(len(x))
            v = self._in_parts(x, times, told)
            if guidance != 1:
                plain = self._in_parts(x, times, torch.zeros_like(told))
                v = plain + guidance * (v - plain)
            return tiles.blend(v) * known.unknown

        return velocity

    def _in_parts(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        parts = zip(x.split(AT_ONCE), t.split(AT_ONCE), tokens.split(AT_ONCE), strict=True)
        return torch.cat([self.network(*part).float() for part in parts])

    def _check(
        self,
        frames: Tensor,
        mask: Tensor,
        tokens: Tensor,
        steps: int,
        temperature: float,
        stride: int,
        reduce: int,
    ) -> None:
        config = self.network.config
        if (
            frames.dim() != 4
            or frames.shape[1] != 1
            or mask.shape != frames.shape
            or mask.dtype != torch.bool
        ):
            raise InvalidSetting(
                f"Frames {tuple(frames.shape)} and mask {tuple(mask.shape)} ({mask.dtype}) do not fit.",
                "Give frames [B, 1, H, W] and a bool mask of the same shape.",
            )
        sizes = torch.tensor(config.token_sizes)
        fits = tokens.shape == (len(frames), len(sizes)) and not tokens.is_floating_point()
        if not fits or bool((tokens.cpu() < 0).any() | (tokens.cpu() >= sizes).any()):
            raise InvalidSetting(
                f"Tokens {tuple(tokens.shape)} are not {len(sizes)} per frame, each below {sizes.tolist()}.",
                "Make them with modicum.apps.pixelgen.prompt.tokens.",
            )
        if min(steps, reduce) < 1 or not 0 <= temperature <= 1 or not 1 <= stride <= config.input_size:
            raise InvalidSetting(
                f"steps {steps}, temperature {temperature}, stride {stride} or reduce {reduce} is out of range.",
                f"Give steps and reduce from 1, temperature in [0, 1], stride from 1 to {config.input_size}.",
            )
