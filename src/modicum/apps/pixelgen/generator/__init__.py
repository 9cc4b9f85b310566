"""The picture generator of PixelGen: a small diffusion transformer that paints colour onto a monochrome frame.

frame, mask --(concealed, edges)--+
sensor tokens ------------------- network, a few times -- colour, and luma where packets were lost
noise, scaled by a temperature ---+

colour.py, frames.py, canvas.py   what is known, what is painted, and the way between pictures and numbers
network.py, diffusion.py          DiT's blocks with readings; velocity prediction, DDIM
tiles.py, model.py                large frames in tiles that agree; `Generator`
enlarge.py, upscale.py            small colours under luma of the full size; lost luma from its neighbours
scene.py, missing.py, objective.py, train.py, train_upscaler.py   how both networks are trained
compress.py                       fewer blocks, fewer bits, fewer steps
measure.py, files.py, card.py     figures, directories, model cards
stable_diffusion.py               the original's generator, for who has its weights ...
canny.py, segmentation.py, hub.py ... what its ControlNet reads, and where its models lie
"""

from __future__ import annotations

from modicum.apps.pixelgen.generator.files import locate, names, save
from modicum.apps.pixelgen.generator.model import Generator
from modicum.apps.pixelgen.generator.network import GeneratorConfig, PixelNetwork
from modicum.apps.pixelgen.generator.segmentation import Segmenter
from modicum.apps.pixelgen.generator.stable_diffusion import StableDiffusion
from modicum.errors import InvalidSetting

__all__ = [
    "DEFAULT",
    "Generator",
    "GeneratorConfig",
    "PixelNetwork",
    "Segmenter",
    "StableDiffusion",
    "locate",
    "names",
    "open_generator",
    "save",
]

DIFFUSERS = "diffusers:"
DEFAULT = "pixelgen-nano-small"


def open_generator(
    name: str = DEFAULT, *, device: str = "cpu", segmenter: str | None = None, download: bool = False
) -> Generator | StableDiffusion:
    """The generator that a user names.

    Args:
        name: a shipped one, a directory, or "diffusers:MODEL", a ControlNet pipeline.
        device: where it paints.
        segmenter: the ControlNet reads what this semantic segmentation model says of a frame, instead of edges.
        download: models of others that are not on this machine are fetched from the hub.

    Raises:
        UnknownName: there is no such generator.
        InvalidSetting: a segmenter for a generator that reads no segmentation.
        UnsupportedModel: the segmenter knows other classes than the ControlNet.
        CheckpointError: it cannot be opened.
        MissingExtra: diffusers is needed and not installed.
    """
    if not name.startswith(DIFFUSERS):
        if segmenter is not None:
            raise InvalidSetting(
                f"{name} reads no segmentation, so --segmenter has no use.",
                "Leave it out, or give a pipeline: --generator diffusers:MODEL.",
            )
        return Generator.load(name, device=device)
    model = name.removeprefix(DIFFUSERS)
    if segmenter is None:
        return StableDiffusion.load(model, device=device, download=download)
    control = Segmenter.load(segmenter, device=device, download=download)
    return StableDiffusion.load(model, device=device, download=download, control=control)
