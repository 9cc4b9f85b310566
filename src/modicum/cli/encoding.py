"""`modicum encode-latents`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modicum.cli import options
from modicum.errors import InvalidSetting

Images = Annotated[Path, typer.Argument(help="A folder of pictures, one subfolder per class.")]
Vae = Annotated[Path, typer.Option("--vae", help="Directory of an AutoencoderKL.")]
Size = Annotated[int, typer.Option("--size", min=1, help="Side of the pictures in pixels.")]
Latents = Annotated[Path, typer.Option("--out", "-o", help="The file to write (.safetensors).")]
For = Annotated[
    str | None,
    typer.Option("--for", help="The model that they are for: gives the scale (DiT's), checks the classes."),
]
AtOnce = Annotated[int, typer.Option("--at-once", min=1, help="Pictures per batch.")]
Replace = Annotated[bool, typer.Option("--overwrite", help="Replace --out if it exists.")]


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "encode-latents", epilog="modicum encode-latents pictures --vae sd-vae --out latents.safetensors"
    )(encode_latents)


def encode_latents(
    images: Images,
    vae: Vae,
    out: Latents,
    size: Size = 256,
    for_: For = None,
    at_once: AtOnce = 8,
    overwrite: Replace = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Turn pictures into the latents that a DiT, SiT or MAR is trained on: as they are and mirrored, with classes.

    The file is training data for `compress --calibration` and `recover --data`.
    """
    from modicum.cli.console import Steps, console, print_json
    from modicum.cli.console import size as byte_size
    from modicum.data.pictures import PictureFolder
    from modicum.models.dit.model import LATENT_SCALE
    from modicum.models.dit.vae import load_vae
    from modicum.pipeline.latents import encode_latents as encode
    from modicum.pipeline.latents import latent_scale
    from modicum.pipeline.run import check_device
    from modicum.report.files import check_free
    from modicum.zoo.locate import locate

    if out.suffix != ".safetensors":
        raise InvalidSetting(
            f"--out {out} is no safetensors file.", "Give it a name that ends in .safetensors."
        )
    check_free(out, overwrite)
    check_device(device)
    folder = PictureFolder.of(images)
    scale = LATENT_SCALE if for_ is None else latent_scale(folder, images, locate(for_))
    screen = console(quiet, as_json)
    with Steps(screen, "batch") as bar:
        shape = encode(
            folder,
            load_vae(vae, device=device),
            size,
            out,
            seed=seed,
            at_once=at_once,
            scale=scale,
            progress=bar,
        )
    written = out.stat().st_size
    if as_json:
        print_json({"out": str(out), "shape": shape, "classes": folder.classes, "bytes": written})
    screen.print(
        f"[green]✓[/] {out}  {shape[0]} pictures of {max(len(folder.classes), 1)} classes, "
        f"latents of {'×'.join(map(str, shape[1:]))}, {byte_size(written)}",
        soft_wrap=True,
    )
