"""`modicum pixelgen ...`: a sensor node, the gateway that puts its frames together, and what it all costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modicum.cli import options, pixelgen_viewing
from modicum.cli.pixelgen_options import energy_model, known_nodes, link, node_settings, secret

if TYPE_CHECKING:
    from modicum.apps.pixelgen.gateway import CompletedFrame, Gateway

ADDRESS = "127.0.0.1:5005"

pixelgen = typer.Typer(
    help="A camera that sends little, and an edge machine that paints the rest.", no_args_is_help=True
)

Baud = Annotated[int, typer.Option("--baud", help="Speed of the serial line.")]
Mode = Annotated[str, typer.Option("--mode", help="Picture: qvga, qqvga, qvga4 or qqvga4 (4 bits).")]
Interleave = Annotated[bool, typer.Option("--interleave", help="Scatter what a lost packet takes away.")]
Parity = Annotated[int, typer.Option("--parity", min=0, help="One more packet after so many; 0 for none.")]
Key = Annotated[Path | None, typer.Option("--key", help="File with the node's secret.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    pixelgen.command("node", epilog="modicum pixelgen node photo.jpg --id 1")(node)
    pixelgen.command("gateway", epilog="modicum pixelgen gateway --node 1 --out frames")(gateway)
    pixelgen.command("energy", epilog="modicum pixelgen energy --period 12")(energy)
    pixelgen_viewing.add_to(pixelgen)
    app.add_typer(pixelgen, name="pixelgen")


def node(
    source: Annotated[str, typer.Argument(help="What it sees: an image, a folder, a video, webcam.")],
    to: Annotated[str, typer.Option("--to", help="HOST:PORT of the gateway.")] = ADDRESS,
    serial: Annotated[
        Path | None, typer.Option("--serial", help="Speak the published text on this line instead.")
    ] = None,
    baud: Baud = 115_200,
    id_: Annotated[int, typer.Option("--id", min=0, max=65535, help="Number of the node.")] = 1,
    key: Key = None,
    mode: Mode = "qvga",
    columns: Annotated[
        bool, typer.Option("--columns", help="One column per packet, without headers.")
    ] = False,
    interleave: Interleave = False,
    parity: Parity = 0,
    period: Annotated[float, typer.Option("--period", min=0, help="Seconds from frame to frame.")] = 12.0,
    count: Annotated[int | None, typer.Option("--count", min=1, help="Frames; endless by default.")] = None,
    sensors: Annotated[
        Path | None, typer.Option("--sensors", help="CSV: Temperature, Humidity, Pressure, Lux.")
    ] = None,
    sound: Annotated[Path | None, typer.Option("--sound", help="A WAV file to listen to.")] = None,
    loss: Annotated[
        float, typer.Option("--loss", min=0, max=1, help="Share of packets to lose on the way.")
    ] = 0.0,
    seed: options.Seed = 0,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Be a sensor node: look, read, listen, and send little."""
    import asyncio

    from modicum.apps.pixelgen.modes import mode as mode_named
    from modicum.apps.pixelgen.node import Camera, CameraSettings, Node, pictures
    from modicum.apps.pixelgen.node.sensors import from_table
    from modicum.apps.pixelgen.node.sound import Recording
    from modicum.cli.console import console, print_json

    protocol = "text" if serial else "columns" if columns else "packets"
    framing = {"mode": mode_named(mode), "interleave": interleave, "parity": parity}
    settings = node_settings(id=id_, key=secret(key), protocol=protocol, framing=framing)
    camera = Camera(CameraSettings(mode=settings.framing.mode), seed)
    readings, heard = from_table(sensors) if sensors else None, Recording(sound) if sound else None
    sender = Node(pictures(source), camera, settings, readings, heard)

    async def run() -> int:
        way = link(to, serial, baud, loss, seed)
        try:
            return await sender.run(way, period, count)
        finally:
            way.close()

    where = serial or to
    console(quiet, as_json).print(f"node {id_} sends {settings.framing.mode.name} frames to {where}")
    sent = asyncio.run(run())
    if as_json:
        print_json({"node": id_, "frames": sent})
    console(quiet, as_json).print(f"{sent} frames sent")


def gateway(
    nodes: Annotated[
        list[str], typer.Option("--node", help="A node that may speak: ID or ID:KEYFILE. Repeatable.")
    ],
    listen: Annotated[str, typer.Option("--listen", help="HOST:PORT to hear.")] = ADDRESS,
    serial: Annotated[
        Path | None, typer.Option("--serial", help="Serial line of the first node, read as well.")
    ] = None,
    baud: Baud = 115_200,
    columns: Annotated[bool, typer.Option("--columns", help="Nodes send columns without headers.")] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.01, help="Seconds of silence that end a frame.")
    ] = 1.0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to add the frames to.")] = None,
    count: Annotated[int | None, typer.Option("--count", min=1, help="Stop after so many frames.")] = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Put frames together from what the nodes sent; Ctrl-C ends it."""
    import asyncio
    from dataclasses import asdict

    from modicum.apps.pixelgen.gateway import Gateway
    from modicum.apps.pixelgen.gateway.archive import Archive
    from modicum.cli.console import console, print_json

    known = known_nodes(nodes, columns)
    machine = Gateway(known, timeout)
    archive, screen = Archive(out) if out else None, console(quiet, as_json)

    def shown(frame: CompletedFrame) -> None:
        if archive:
            archive.write(frame)
        cost = f"  {1000 * frame.energy.total:.2f} mJ (model)" if frame.energy else ""
        screen.print(f"node {frame.node}  frame {frame.number}  {frame.mask.mean():.1%} known{cost}")

    lines = {next(iter(known)): serial} if serial else {}
    asyncio.run(_serve(machine, listen, lines, baud, count, shown, screen.print))
    found = {id_: asdict(counts) for id_, counts in machine.statistics().items()}
    if as_json:
        print_json({"nodes": found, "refused": machine.refused})
    for id_, counts in found.items():
        screen.print(f"node {id_}  " + "  ".join(f"{name} {value}" for name, value in counts.items()))


def energy(
    mode: Mode = "qvga",
    period: Annotated[float, typer.Option("--period", min=0, help="Seconds from frame to frame.")] = 12.0,
    headers: Annotated[
        bool, typer.Option("--headers/--columns", help="With our packet headers, or one column per packet.")
    ] = True,
    set_: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="A constant, as KEY=VALUE. Repeatable.")
    ] = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Say what a frame costs the node: a model, with the source of every constant."""
    from modicum.apps.pixelgen.energy import RGB_CAMERAS
    from modicum.apps.pixelgen.modes import mode as mode_named
    from modicum.apps.pixelgen.radio.packets import HEADER_BYTES, payload_size
    from modicum.cli.console import console, print_json
    from modicum.cli.energy_table import energy_table

    model = energy_model(set_ or [])
    header = HEADER_BYTES if headers else 0
    ours = model.frame(mode_named(mode).nbytes, period, payload_size() + HEADER_BYTES - header, header)
    others = {camera.name: model.rgb_frame(camera, period) for camera in RGB_CAMERAS}
    rows = {mode: ours, **others}
    if as_json:
        frames = {name: frame.model_dump(mode="json") for name, frame in rows.items()}
        days = {name: model.cell_days(frame) for name, frame in rows.items()}
        print_json({"basis": "model", "frames": frames, "cell_days": days, "constants": model.constants()})
    console(quiet, as_json).print(energy_table(model, rows))


async def _serve(
    machine: Gateway,
    listen: str,
    lines: dict[int, Path],
    baud: int,
    count: int | None,
    shown: Callable[[CompletedFrame], None],
    ready: Callable[[str], None],
) -> None:
    """Hear and read until `count` frames are there or a signal comes; says when everything is open."""
    import asyncio
    import signal
    from contextlib import AsyncExitStack

    from modicum.apps.pixelgen.gateway import listening, reading
    from modicum.apps.pixelgen.radio.links import address

    async with AsyncExitStack() as stack:
        frames = stack.enter_context(machine.subscribe())
        host, port = await stack.enter_async_context(listening(machine, *address(listen)))
        for id_, line in lines.items():
            await stack.enter_async_context(reading(machine, id_, line, baud))
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, frames.close)
        ready(f"listening at {host}:{port}")
        seen = 0
        async for frame in frames:
            shown(frame)
            seen += 1
            if seen == count:
                break
