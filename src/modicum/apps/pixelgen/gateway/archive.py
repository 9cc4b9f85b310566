"""Completed frames as files: what was received, which of it is known, and what is known beside it.

frames.jsonl                  one object per frame
0007-00042-frame.png          as received, unknown pixels black
0007-00042-mask.png           white where known
0007-00042-concealed.png      holes filled from their neighbours
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from modicum.apps.pixelgen.gateway.events import CompletedFrame
from modicum.apps.pixelgen.prompt import sentence, tokens


class Archive:
    """A folder that frames are written to.

    Args:
        folder: is made if it does not exist; what it holds stays.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, frame: CompletedFrame) -> None:
        """Add a frame."""
        from PIL import Image

        name = f"{frame.node:04}-{frame.number:05}"
        layers = {"frame": frame.frame, "mask": frame.mask * np.uint8(255), "concealed": frame.concealed}
        for layer, pixels in layers.items():
            Image.fromarray(pixels).save(self.folder / f"{name}-{layer}.png")
        with (self.folder / "frames.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, **described(frame)}) + "\n")


def described(frame: CompletedFrame) -> dict[str, Any]:
    """A frame without its pixels, as plain JSON values."""
    return {
        "node": frame.node,
        "number": frame.number,
        "known": float(frame.mask.mean()),
        "readings": asdict(frame.readings),
        "tokens": tokens(frame.readings),
        "sentence": sentence(frame.readings),
        "mel": frame.sound.mel.tolist() if frame.sound else None,
        "nbytes": frame.nbytes,
        "energy": frame.energy.model_dump(mode="json") if frame.energy else None,
        "statistics": asdict(frame.statistics),
    }
