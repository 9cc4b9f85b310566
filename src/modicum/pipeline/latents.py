"""Pictures as the latents that a DiT, SiT or MAR is trained on, computed once.

Every picture is encoded as it is and mirrored, and training draws either. The file holds one row per picture, as
`training_data.file_samples` reads it:

    y            int64 `[n]`, index of the class
    x0           float32 `[n, channels, side, side]`, a sample of the encoder's distribution times the model's scale
    x0_flipped   likewise, of the mirrored picture

Rows are written batch by batch where they belong, so a batch is all that is in memory, and the file appears under its
name when the last one is there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from modicum.data.pictures import PictureFolder, read_picture
from modicum.errors import InvalidSetting, UnsupportedModel, UnusableData
from modicum.evaluate.inference import device_of, evaluating
from modicum.formats.shards import make_header, no_space
from modicum.models.class_models import class_config, class_kind
from modicum.models.dit.model import LATENT_SCALE
from modicum.models.mar import MARConfig
from modicum.models.mar.model import LATENT_SCALE as MAR_SCALE


def encode_latents(
    folder: PictureFolder,
    vae: nn.Module,
    size: int,
    out: Path,
    *,
    seed: int = 0,
    at_once: int = 8,
    scale: float = LATENT_SCALE,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[int, ...]:
    """Write the latents of all pictures of a folder.

    Args:
        folder: the pictures.
        vae: a diffusers AutoencoderKL, on its device.
        size: side of the pictures in pixels, to which they are cropped and resized.
        out: the file to write (.safetensors); replaced if it exists.
        seed: picture i is sampled from seed + i, whatever is encoded beside it.
        at_once: pictures per batch.
        scale: that the model multiplies latents by; DiT and SiT have 0.18215, MAR 0.2325.
        progress: told after every batch how many are done, and of how many.

    Returns:
        The shape of x0.

    Raises:
        InvalidSetting: a size that the autoencoder does not divide, or no picture at once.
        UnusableData: a picture that cannot be read.
        OutOfSpace: the disk is full; nothing is left behind.
    """
    if at_once < 1:
        raise InvalidSetting(f"{at_once} pictures at once are none.", "Encode 1 or more.")
    shape = (len(folder.files), *_latent_shape(vae, size))
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    try:
        with partial.open("wb") as stream, evaluating(vae):
            entries = {
                "y": (torch.int64, shape[:1]),
                **dict.fromkeys(("x0", "x0_flipped"), (torch.float32, shape)),
            }
            rows = _Rows(stream, entries)
            for done, (start, batch) in enumerate(_batches(folder, vae, size, seed, at_once, scale), start=1):
                for name, values in batch.items():
                    rows.write(name, start, values)
                progress(done, -(-shape[0] // at_once))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, out)
    except OSError as error:
        raise no_space(out, error) from error
    finally:
        partial.unlink(missing_ok=True)
    return shape


def latent_scale(folder: PictureFolder, root: Path, directory: Path) -> float:
    """The scale of a model's latents, if the folder has no more classes than the model.

    Args:
        folder: the pictures.
        root: where they lie, for the message.
        directory: of the model that they are for.

    Raises:
        UnsupportedModel: it draws no latents.
        UnusableData: the folder has a class that the model does not have.
    """
    config = class_config(directory) if class_kind(directory) else None
    if config is None or config.pixel_space:
        raise UnsupportedModel(
            f"{directory.name} draws no latents.", "Give a DiT, SiT or MAR that does with --for."
        )
    if len(folder.classes) > config.num_classes:
        raise UnusableData(
            f"{root} has {len(folder.classes)} subfolders; {directory.name} has {config.num_classes} classes, and "
            f"{folder.classes[config.num_classes]!r} would be class {config.num_classes}.",
            "Leave out the folders of classes that the model does not draw.",
        )
    return MAR_SCALE if isinstance(config, MARConfig) else LATENT_SCALE


class _Rows:
    """A safetensors file of known shapes whose rows are written in any order."""

    def __init__(self, stream: BinaryIO, entries: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        header = make_header(entries)
        self.stream = stream
        self.width = {name: prod(shape[1:]) * dtype.itemsize for name, (dtype, shape) in entries.items()}
        sizes = [shape[0] * self.width[name] for name, (_, shape) in entries.items()]
        self.start = dict(zip(entries, accumulate(sizes, initial=len(header)), strict=False))
        stream.write(header)

    def write(self, name: str, row: int, values: Tensor) -> None:
        """Put rows where they belong, from `row` on."""
        self.stream.seek(self.start[name] + row * self.width[name])
        self.stream.write(values.cpu().contiguous().numpy().tobytes())


def _batches(
    folder: PictureFolder, vae: nn.Module, size: int, seed: int, at_once: int, scale: float
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """First row and tensors of every batch."""
    for start in range(0, len(folder.files), at_once):
        files = folder.files[start : start + at_once]
        pictures = torch.stack([read_picture(file, size) for file in files]).to(device_of(vae))
        seeds = range(seed + start, seed + start + len(files))
        yield (
            start,
            {
                "y": torch.tensor(folder.labels[start : start + at_once]),
                "x0": _encoded(vae, pictures, seeds) * scale,
                "x0_flipped": _encoded(vae, pictures.flip(-1), seeds) * scale,
            },
        )


def _encoded(vae: nn.Module, pictures: Tensor, seeds: range) -> Tensor:
    """A sample of the latents of every picture, float32 `[B, channels, side, side]`."""
    found = vae.encode(pictures).latent_dist  # type: ignore[operator]
    noise = torch.stack(
        [torch.randn(found.mean.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )
    return (found.mean + found.std * noise.to(found.mean.device)).float()


def _latent_shape(vae: nn.Module, size: int) -> tuple[int, int, int]:
    factor = 2 ** (len(vae.config.block_out_channels) - 1)  # type: ignore[union-attr, arg-type]
    if size < factor or size % factor:
        raise InvalidSetting(
            f"Pictures of {size} pixels do not divide into latents of {factor}x{factor} pixels each.",
            f"Choose a multiple of {factor} with --size.",
        )
    return int(vae.config.latent_channels), size // factor, size // factor  # type: ignore[union-attr, arg-type]
