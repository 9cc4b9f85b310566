"""`modicum pixelgen demo` and `view`: frames of a node in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from modicum.cli import options

if TYPE_CHECKING:
    from modicum.apps.pixelgen.viewer.broadcast import Broadcast

GENERATOR = "pixelgen-nano-small"
PORT = 8005
RECORDINGS = Path("pixelgen-recordings")

Host = Annotated[str, typer.Option("--host", help="Where the page is served.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port of the page; 0 takes a free one.")]
Token = Annotated[
    Path | None, typer.Option("--token", help="File with a secret; needed when --host is not this machine.")
]
Seconds = Annotated[
    float | None, typer.Option("--seconds", min=0, help="End after so long; Ctrl-C by default.")
]
Painter = Annotated[
    str,
    typer.Option("--generator", help="Who paints: a shipped generator, a directory, or diffusers:MODEL."),
]
Segmenter = Annotated[
    str | None,
    typer.Option("--segmenter", help="Semantic segmentation model for diffusers:MODEL; edges by default."),
]
Download = Annotated[
    bool, typer.Option("--download", help="Fetch models of others that are not on this machine.")
]
Recordings = Annotated[Path, typer.Option("--recordings", help="Folder for what is recorded.")]
Recording = Annotated[
    Literal["mp4", "gif"] | None,
    typer.Option("--recording", help="How it is recorded; MP4 where PyAV is installed, else GIF."),
]


def add_to(group: typer.Typer) -> None:
    """Register the commands."""
    group.command("demo", epilog="modicum pixelgen demo --loss 0.2")(demo)
    group.command("view", epilog="modicum pixelgen view --node 1 --listen 127.0.0.1:5005")(view)


def demo(
    source: Annotated[
        str | None,
        typer.Option("--source", help="An image, folder, video or webcam; a drawn shore by default."),
    ] = None,
    mode: Annotated[
        str, typer.Option("--mode", help="Picture: qvga, qqvga, qvga4 or qqvga4 (4 bits).")
    ] = "qvga",
    period: Annotated[float, typer.Option("--period", min=0, help="Seconds from frame to frame.")] = 2.0,
    loss: Annotated[
        float, typer.Option("--loss", min=0, max=1, help="Share of packets that the radio loses.")
    ] = 0.1,
    interleave: Annotated[
        bool, typer.Option("--interleave/--rows", help="Scatter what a lost packet takes away, or lose rows.")
    ] = True,
    generator: Painter = GENERATOR,
    segmenter: Segmenter = None,
    download: Download = False,
    device: options.Device = "cpu",
    host: Host = "127.0.0.1",
    port: Port = PORT,
    token: Token = None,
    recordings: Recordings = RECORDINGS,
    recording: Recording = None,
    seconds: Seconds = None,
    seed: options.Seed = 0,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Play all of it in one command: a scene, a node, a radio that loses packets, a gateway, and the page."""
    import asyncio

    from modicum.apps.pixelgen.demo import Stage, play
    from modicum.apps.pixelgen.modes import mode as mode_named
    from modicum.apps.pixelgen.viewer.guard import Guard
    from modicum.cli.console import console
    from modicum.cli.pixelgen_options import secret

    stage = Stage(
        source=source,
        mode=mode_named(mode),
        period=period,
        loss=loss,
        interleave=interleave,
        generator=generator,
        segmenter=segmenter,
        download=download,
        device=device,
        recordings=recordings,
        recording=recording,
        seed=seed,
    )
    screen, guard = console(quiet, as_json), Guard(host, secret(token))
    shown = asyncio.run(play(stage, guard, port, seconds, lambda address: screen.print(f"open {address}")))
    _finished(shown, quiet, as_json)


def view(
    node: Annotated[str, typer.Option("--node", help="The node that may speak: ID or ID:KEYFILE.")] = "1",
    listen: Annotated[str, typer.Option("--listen", help="HOST:PORT to hear.")] = "127.0.0.1:5005",
    serial: Annotated[
        Path | None, typer.Option("--serial", help="Serial line of the node, read as well.")
    ] = None,
    baud: Annotated[int, typer.Option("--baud", help="Speed of the serial line.")] = 115_200,
    columns: Annotated[
        bool, typer.Option("--columns", help="The node sends columns without headers.")
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.01, help="Seconds of silence that end a frame.")
    ] = 1.0,
    generator: Painter = GENERATOR,
    segmenter: Segmenter = None,
    download: Download = False,
    device: options.Device = "cpu",
    host: Host = "127.0.0.1",
    port: Port = PORT,
    token: Token = None,
    recordings: Recordings = RECORDINGS,
    recording: Recording = None,
    seconds: Seconds = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Be the gateway of a node and show its frames in a browser; Ctrl-C ends it."""
    import asyncio
    from contextlib import nullcontext

    from modicum.apps.pixelgen.gateway import Gateway, reading
    from modicum.apps.pixelgen.generator import open_generator
    from modicum.apps.pixelgen.radio.links import address
    from modicum.apps.pixelgen.viewer.broadcast import Broadcast
    from modicum.apps.pixelgen.viewer.guard import Guard
    from modicum.apps.pixelgen.viewer.painting import Painter
    from modicum.apps.pixelgen.viewer.recording import Recorder
    from modicum.apps.pixelgen.viewer.serving import show
    from modicum.cli.console import console
    from modicum.cli.pixelgen_options import known_nodes, secret

    screen, guard, known = console(quiet, as_json), Guard(host, secret(token)), known_nodes([node], columns)
    heard, gateway = address(listen), Gateway(known, timeout)
    opened = open_generator(generator, device=device, segmenter=segmenter, download=download)
    painter = Painter(opened, generator)
    broadcast = Broadcast(painter, Recorder(recordings, recording), gateway.clock)

    (id_,) = known
    places = f"{listen} and {serial}" if serial else listen

    def ready(page: str) -> None:
        screen.print(f"open {page}  hearing node {id_} at {places}")

    async def run() -> None:
        async with reading(gateway, id_, serial, baud) if serial else nullcontext():
            await show(gateway, broadcast, guard, listen=heard, port=port, seconds=seconds, ready=ready)

    asyncio.run(run())
    _finished(broadcast, quiet, as_json)


def _finished(shown: Broadcast, quiet: bool, as_json: bool) -> None:
    from modicum.cli.console import console, print_json

    if as_json:
        print_json({"painted": shown.painted, "skipped": shown.skipped})
    console(quiet, as_json).print(f"{shown.painted} frames painted, {shown.skipped} skipped for newer ones")
