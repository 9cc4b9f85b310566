"""One frame, three pictures: as received, painted, and painted with what cannot be seen.

    raw         the pixels as they came, dim as a raw sensor is; teal where nothing arrived
    generated   the frame developed to the eye's curve, and coloured by the generator: plausible, not measured
    overlay     the same in the mood of the readings, with the sound drawn in

A raw sensor counts light, a photograph follows the eye, and generators are trained on photographs. "Developed" is the
curve of sRGB between the two. Legend: pictures uint8 [H, W, 3].
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from modicum.apps.pixelgen.gateway import CompletedFrame
from modicum.apps.pixelgen.generator import Generator, StableDiffusion
from modicum.apps.pixelgen.modes import Bytes
from modicum.apps.pixelgen.node.sound import Samples
from modicum.apps.pixelgen.overlay import beam_map, heat, mood, rings
from modicum.apps.pixelgen.prompt import tokens

PAINTED_WIDTH = 81
"""Columns at which colours are painted; the shipped generator guesses best on small pictures."""
UNKNOWN = np.array((18, 92, 96), np.uint8)
MIDDLE = (0.5, 0.5)

Hearing = Callable[[], tuple[Samples, int, float]]
"""Gives sound of four microphones `[4, n]`, samples per second, and the side of their square in metres."""


@dataclass(frozen=True)
class Painted:
    """A frame and its three pictures.

    Attributes:
        frame: what came.
        raw: uint8 `[H, W, 3]`.
        generated: uint8 `[H, W, 3]`.
        overlay: uint8 `[H, W, 3]`.
        seconds: that painting took.
        direction: where the sound comes from, (right, down) in 0..1; None without four microphones.
    """

    frame: CompletedFrame
    raw: Bytes
    generated: Bytes
    overlay: Bytes
    seconds: float
    direction: tuple[float, float] | None


class Painter:
    """Paints frames, one at a time.

    Args:
        generator: of colours.
        name: what the generator is called.
        anchor: where the sound of a single microphone is drawn, (right, down) in 0..1.
        hear: four simulated microphones at this machine, if there are any.
        seed: of every picture; the same for all, so that a scene at rest keeps its colours.
    """

    def __init__(
        self,
        generator: Generator | StableDiffusion,
        name: str,
        anchor: tuple[float, float] = MIDDLE,
        hear: Hearing | None = None,
        seed: int = 0,
    ) -> None:
        self.generator, self.name = generator, name
        self.anchor, self.hear, self.seed = anchor, hear, seed

    def paint(self, frame: CompletedFrame) -> Painted:
        """The pictures of a frame."""
        started = time.perf_counter()
        generated = self._generated(frame)
        overlay, direction = self._overlay(generated, frame)
        return Painted(
            frame=frame,
            raw=np.where(frame.mask[..., None], frame.frame[..., None], UNKNOWN),
            generated=_bytes(generated),
            overlay=_bytes(overlay),
            seconds=time.perf_counter() - started,
            direction=direction,
        )

    def _generated(self, frame: CompletedFrame) -> NDArray[np.float32]:
        light = torch.from_numpy(developed(frame.frame))[None, None]
        arguments = (light, torch.from_numpy(frame.mask)[None, None], torch.tensor([tokens(frame.readings)]))
        if isinstance(self.generator, StableDiffusion):
            painted = self.generator.generate(*arguments, seed=self.seed)
        else:
            reduce = max(1, round(light.shape[-1] / PAINTED_WIDTH))
            painted = self.generator.generate(*arguments, reduce=reduce, seed=self.seed)
        return painted[0].float().permute(1, 2, 0).cpu().numpy()

    def _overlay(
        self, picture: NDArray[np.float32], frame: CompletedFrame
    ) -> tuple[NDArray[np.float32], tuple[float, float] | None]:
        drawn, direction = mood(picture, frame.readings), None
        if self.hear:
            beams = beam_map(*self.hear())
            drawn, direction = heat(drawn, beams), _peak(beams)
        level, frequency = frame.readings.level, frame.readings.frequency
        if level is not None and frequency is not None:
            drawn = rings(drawn, direction or self.anchor, level, frequency)
        return drawn, direction


def developed(frame: Bytes) -> NDArray[np.float32]:
    """Sensor values uint8 `[H, W]` on the eye's curve (sRGB), float32 `[H, W]` in 0..1."""
    light = np.arange(256) / 255
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return curve.astype(np.float32)[frame]


def _peak(beams: NDArray[np.float64]) -> tuple[float, float]:
    """The middle of the strongest cell, (right, down) in 0..1."""
    row, column = np.unravel_index(int(beams.argmax()), beams.shape)
    return (float(column) + 0.5) / beams.shape[1], (float(row) + 0.5) / beams.shape[0]


def _bytes(picture: NDArray[np.float32]) -> Bytes:
    return np.rint(255 * picture).clip(0, 255).astype(np.uint8)
