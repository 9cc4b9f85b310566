"""The picture generator of PixelGen: a small diffusion transformer that paints colour onto a monochrome frame.

frame, mask --(concealed, edges)--+
sensor tokens ------------------- network, a few times -- colour, and luma where packets were lost
noise, scaled by a temperature ---+

colour.py, frames.py, canvas.py   what is known, what is painted, and the way between pictures and numbers
network.py, diffusion.py          DiT's blocks with readings; velocity prediction, DDIM
tiles.py, model.py                large frames in tiles that agree; `Generator`
scene.py, missing.py, objective.py, train.py   how it is trained
compress.py                       fewer blocks, fewer bits, fewer steps
stable_diffusion.py               the original's generator, for who has its weights
"""

from __future__ import annotations

from modicum.apps.pixelgen.generator.files import locate, names, save
from modicum.apps.pixelgen.generator.model import Generator
from modicum.apps.pixelgen.generator.network import GeneratorConfig, PixelNetwork
from modicum.apps.pixelgen.generator.stable_diffusion import StableDiffusion

__all__ = [
    "Generator",
    "GeneratorConfig",
    "PixelNetwork",
    "StableDiffusion",
    "locate",
    "names",
    "open_generator",
    "save",
]

DIFFUSERS = "diffusers:"


def open_generator(name: str, *, device: str = "cpu") -> Generator | StableDiffusion:
    """The generator that a user names: a shipped one, a directory, or "diffusers:DIRECTORY".

    Raises:
        UnknownName: there is no such generator.
        CheckpointError: it cannot be opened.
        MissingExtra: diffusers is needed and not installed.
    """
    if name.startswith(DIFFUSERS):
        return StableDiffusion.load(name.removeprefix(DIFFUSERS), device=device)
    return Generator.load(name, device=device)
