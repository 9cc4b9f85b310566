"""The demonstration put together: a node in front of a scene, a radio with losses, a gateway, a viewer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from modicum.apps.pixelgen.demo.scene import Motor, Shore
from modicum.apps.pixelgen.energy import EnergyModel
from modicum.apps.pixelgen.gateway import Gateway, KnownNode
from modicum.apps.pixelgen.generator import DEFAULT, open_generator
from modicum.apps.pixelgen.modes import QVGA, Bytes, Mode
from modicum.apps.pixelgen.node import Camera, CameraSettings, Node, NodeSettings, pictures
from modicum.apps.pixelgen.radio.channel import Channel
from modicum.apps.pixelgen.radio.framing import Framing
from modicum.apps.pixelgen.radio.links import Udp
from modicum.apps.pixelgen.viewer.broadcast import Broadcast
from modicum.apps.pixelgen.viewer.guard import Guard
from modicum.apps.pixelgen.viewer.painting import Painter
from modicum.apps.pixelgen.viewer.recording import Kind, Recorder
from modicum.apps.pixelgen.viewer.serving import show
from modicum.errors import UnusableData

ID = 1
TIMEOUT = 0.4
RECORDINGS = Path("pixelgen-recordings")


class Stage(BaseModel):
    """What is played."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    source: str | None = Field(None, description="image, folder, video or webcam instead of the drawn shore")
    mode: Mode = Field(QVGA, description="size and depth of the node's picture")
    period: float = Field(2.0, ge=0, description="seconds from frame to frame")
    loss: float = Field(0.1, ge=0, le=1, description="share of packets that the radio loses")
    interleave: bool = Field(True, description="scatter what a lost packet takes away")
    generator: str = Field(DEFAULT, description="who paints")
    segmenter: str | None = Field(None, description="who says what is where, for a ControlNet")
    download: bool = Field(False, description="fetch models of others")
    device: str = Field("cpu", description="where it paints")
    recordings: Path = Field(RECORDINGS, description="folder for recordings")
    recording: Kind | None = Field(None, description="what they are; MP4 where it can be encoded by default")
    seed: int = Field(0, ge=0, description="of scene, noise, losses and colours")


async def play(
    stage: Stage,
    guard: Guard,
    port: int,
    seconds: float | None = None,
    ready: Callable[[str], None] = lambda address: None,
) -> Broadcast:
    """Run all of it until a signal comes or the time is over.

    Args:
        stage: what is played.
        guard: who may look, and where the server binds.
        port: of the page; 0 takes a free one.
        seconds: to run; until a signal by default.
        ready: told the address of the page.

    Returns:
        What was shown, with its counts.
    """
    shore = Shore(stage.seed)
    painter = Painter(
        open_generator(
            stage.generator, device=stage.device, segmenter=stage.segmenter, download=stage.download
        ),
        stage.generator,
        hear=None if stage.source else Motor(shore, stage.seed).around,
        seed=stage.seed,
    )
    gateway = Gateway({ID: KnownNode()}, TIMEOUT)
    broadcast = Broadcast(painter, Recorder(stage.recordings, stage.recording), gateway.clock)
    node = _node(stage, shore)

    async def sender(host: str, udp: int) -> None:
        pause = EnergyModel().air(244).total  # as long as the packet would be on the air
        link = Udp(host, udp, pause, Channel(loss=stage.loss).open(stage.seed))
        try:
            await node.run(link, stage.period)
        finally:
            link.close()

    local = ("127.0.0.1", 0)
    await show(
        gateway, broadcast, guard, listen=local, port=port, seconds=seconds, ready=ready, sender=sender
    )
    return broadcast


def endless(source: str) -> Iterator[Bytes]:
    """The pictures of a source, again and again.

    Raises:
        UnusableData: there are none.
    """
    while True:
        seen = False
        for picture in pictures(source):
            seen = True
            yield picture
        if not seen:
            raise UnusableData(f"{source} has no pictures.", "Give an image, a folder or a video.")


def _node(stage: Stage, shore: Shore) -> Node:
    camera = Camera(CameraSettings(mode=stage.mode), stage.seed)
    settings = NodeSettings(id=ID, framing=Framing(mode=stage.mode, interleave=stage.interleave))
    if stage.source:
        return Node(endless(stage.source), camera, settings)
    return Node(shore, camera, settings, shore, Motor(shore))
