"""The original's generator: Stable Diffusion, held to the frame by a ControlNet.

    generator = StableDiffusion.load("directory of a StableDiffusionControlNetPipeline")

What the ControlNet reads is made of the frame by a control: its Canny edges, or with `segmentation` what is where in
it. The readings reach the model as a sentence. The picture is new altogether, unless `keep_luma` puts the measured
luma back.

Paper: PixelGen, arXiv 2402.03390; ControlNet, ICCV 2023, arXiv 2302.05543. The original's prompts by a language model
and its sampling settings were not published.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modicum.apps.pixelgen.generator.canny import canny, equalised
from modicum.apps.pixelgen.generator.colour import chroma, colours, luma
from modicum.apps.pixelgen.generator.frames import conceal
from modicum.apps.pixelgen.generator.hub import model_directory
from modicum.apps.pixelgen.prompt import Scale, SensorTokens, sentence
from modicum.apps.pixelgen.readings import Readings
from modicum.errors import CheckpointError, MissingExtra

CLASS = "StableDiffusionControlNetPipeline"
WEIGHTS = "*/*.safetensors"

Control = Callable[[Tensor], Tensor]
"""Frames `[B, 1, H, W]` in [0, 1] -> what a ControlNet reads, `[B, 3, H, W]` in [0, 1]."""


def drawn_edges(frames: Tensor) -> Tensor:
    """White Canny edges on black, `[B, 3, H, W]`."""
    return canny(equalised(frames)).float().expand(-1, 3, -1, -1)


class StableDiffusion:
    """A pipeline of diffusers under the interface of `Generator`.

    Args:
        pipeline: a StableDiffusionControlNetPipeline.
        side: length of the longer side that it paints at, in pixels.
        keep_luma: whether measured luma takes the place of the painted one.
        control: makes of frames what the ControlNet was trained to read.
    """

    def __init__(
        self, pipeline: Any, side: int = 512, keep_luma: bool = False, control: Control = drawn_edges
    ) -> None:
        self.pipeline, self.side, self.keep_luma, self.control = pipeline, side, keep_luma, control

    @classmethod
    def load(
        cls, name: str | Path, *, device: str = "cpu", download: bool = False, **settings: Any
    ) -> StableDiffusion:
        """Open what `StableDiffusionControlNetPipeline.save_pretrained` wrote.

        Args:
            name: a directory, or the name of a pipeline on the hub.
            device: where it runs.
            download: fetch it if it is not on this machine.
            **settings: `side`, `keep_luma` and `control`, see above.

        Raises:
            MissingExtra: diffusers is not installed.
            CheckpointError: no such pipeline is there.
        """
        try:
            from diffusers import StableDiffusionControlNetPipeline
        except ImportError as error:
            raise MissingExtra.of("diffusers", "images", "Stable Diffusion") from error
        directory = model_directory(name, WEIGHTS, download=download)
        try:
            pipeline = StableDiffusionControlNetPipeline.from_pretrained(
                str(directory), local_files_only=True, use_safetensors=True, safety_checker=None
            )
        except Exception as error:  # diffusers lets through whatever its parts stumble on
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{name} is no {CLASS}: {reason}",
                f"Give a directory that {CLASS} saved, ControlNet included.",
            ) from error
        pipeline.set_progress_bar_config(disable=True)
        return cls(pipeline.to(device), **settings)

    @torch.no_grad()
    def generate(
        self,
        frames: Tensor,
        mask: Tensor,
        tokens: Tensor,
        *,
        steps: int = 20,
        guidance: float = 7.5,
        seed: int = 0,
    ) -> Tensor:
        """Paint colour pictures; arguments as of `Generator.generate`.

        Args:
            frames: float `[B, 1, H, W]` in [0, 1].
            mask: bool `[B, 1, H, W]`, True where a pixel arrived.
            tokens: int64 `[B, positions]` of `SensorTokens`.
            steps: passes of the network.
            guidance: how much the sentence is exaggerated.
            seed: picture i is drawn from seed + i.

        Returns:
            float32 `[B, 3, H, W]` in [0, 1].
        """
        frame = conceal(frames.float(), mask)
        height, width = frame.shape[-2:]
        size = tuple(
            max(8, round(length * self.side / max(height, width) / 8) * 8) for length in (height, width)
        )
        enlarged = F.interpolate(frame, size, mode="bicubic", antialias=True).clamp(0, 1)
        painted = self.pipeline(
            [sentence(readings) for readings in readings_of(tokens)],
            image=self.control(enlarged),
            height=size[0],
            width=size[1],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed + index) for index in range(len(frame))],
            output_type="pt",
        ).images
        painted = F.interpolate(painted.float(), (height, width), mode="area").clamp(0, 1)
        if not self.keep_luma:
            return painted
        return colours(
            torch.where(mask.to(painted.device), frame.to(painted), luma(painted)), chroma(painted)
        )


def readings_of(tokens: Tensor) -> list[Readings]:
    """Readings that `prompt.tokens` turns into `tokens` `[B, positions]`."""
    return [
        Readings(
            **{
                scale.reading: _value(scale, token)
                for scale, token in zip(SensorTokens.scales, row, strict=True)
            }
        )
        for row in tokens.tolist()
    ]


def _value(scale: Scale, token: int) -> float | None:
    """A value inside the bin of a token; None for "unknown"."""
    if token == 0:
        return None
    return scale.edges[0] - 1 if token == 1 else scale.edges[token - 2]
