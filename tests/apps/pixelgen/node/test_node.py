from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from modicum.apps.pixelgen.gateway import CompletedFrame, Gateway, KnownNode
from modicum.apps.pixelgen.modes import QQVGA4, QVGA
from modicum.apps.pixelgen.node import Camera, CameraSettings, Node, NodeSettings
from modicum.apps.pixelgen.node.sensors import Scripted
from modicum.apps.pixelgen.radio.channel import Channel
from modicum.apps.pixelgen.radio.framing import Framing
from modicum.apps.pixelgen.radio.links import InProcess, Udp, address
from modicum.apps.pixelgen.readings import Readings
from modicum.errors import InvalidSetting

Picture = NDArray[np.uint8]
SMALL = Framing(mode=QQVGA4)


def node(photo: Picture, count: int = 2, **settings: Any) -> Node:
    """A node that sees a photo a few times."""
    chosen = NodeSettings(**settings)
    camera = Camera(CameraSettings(mode=chosen.framing.mode))
    return Node(iter([photo] * count), camera, chosen, Scripted([Readings(21.0, 40.0, 100_000.0, 300.0)]))


def heard_of(sender: Node, known: KnownNode, **channel: float) -> list[CompletedFrame]:
    """What a gateway hands on of all that a node sends."""
    gateway = Gateway({1: known})
    frames = gateway.subscribe(100)
    text = sender.settings.protocol == "text"
    link = InProcess(
        (lambda data: gateway.text(1, data)) if text else gateway.receive, Channel(**channel).open(0)
    )
    asyncio.run(sender.run(link, period=0.0))
    gateway.clock = lambda: 1e12
    gateway.expire()
    return frames.take()


@pytest.mark.parametrize(
    ("settings", "known"),
    [
        ({}, KnownNode()),
        ({"framing": Framing(mode=QQVGA4, interleave=True, parity=5), "key": b"k"}, KnownNode(b"k")),
        ({"protocol": "columns"}, KnownNode(columns=True)),
        ({"protocol": "text"}, KnownNode()),
    ],
    ids=["packets", "signed, small", "columns", "text"],
)
def test_every_protocol_carries_the_same_picture(
    photo: Picture, settings: dict[str, Any], known: KnownNode
) -> None:
    seen = node(photo, **settings)
    first = seen.capture()
    assert first is not None
    frames = heard_of(node(photo, **settings), known)
    assert len(frames) == 2
    mode = settings.get("framing", Framing()).mode
    assert np.array_equal(frames[0].frame, mode.unpack(mode.pack(first.frame)))  # upright
    assert all(frame.mask.all() for frame in frames)
    assert frames[1].number == (frames[0].number + 1) % 65_536 or settings.get("protocol")
    if settings.get("protocol") != "columns":
        readings = frames[1].readings
        assert (readings.temperature, readings.humidity, readings.pressure) == (21.0, 40.0, 100_000.0)
        assert readings.lux == pytest.approx(300, rel=1e-3)


def test_losses_on_the_way(photo: Picture) -> None:
    frames = heard_of(node(photo, framing=SMALL, count=8), KnownNode(), loss=0.3)
    known = np.array([frame.mask.mean() for frame in frames])
    assert len(known) == 8
    assert 0.5 < known.mean() < 0.9


def test_the_exposure_settles_before_the_first_frame(photo: Picture) -> None:
    capture = node(photo).capture()
    assert capture is not None
    assert abs(capture.frame.mean() - 60) <= 15


def test_it_ends_with_the_pictures_or_the_count(photo: Picture) -> None:
    sent: list[bytes] = []
    assert asyncio.run(node(photo, framing=SMALL).run(InProcess(sent.append), 0.0)) == 2
    assert len(sent) == 2 * 43
    assert asyncio.run(node(photo, count=9, framing=SMALL).run(InProcess(sent.append), 0.0, count=1)) == 1


def test_frames_keep_their_period(photo: Picture) -> None:
    times: list[float] = []

    async def main() -> float:
        clock = asyncio.get_running_loop().time
        begun = clock()
        link = InProcess(lambda _: times.append(clock()))
        await node(photo, count=4, framing=SMALL).run(link, period=0.1)
        return begun

    begun = asyncio.run(main())
    starts = np.array(times[::43]) - begun
    assert len(starts) == 4
    assert (starts >= 0.1 * np.arange(4) - 0.01).all()


def test_first_numbers_are_random_unless_given(photo: Picture) -> None:
    assert node(photo, first=65_535).number == 65_535
    assert len({node(photo).number for _ in range(4)}) > 1
    end = node(photo, first=65_535, framing=SMALL)
    capture = end.capture()
    assert capture is not None
    end.encoded(capture)
    assert end.number == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"protocol": "text", "framing": SMALL},
        {"protocol": "columns", "framing": Framing(parity=4)},
        {"protocol": "columns", "key": b"k"},
        {"key": b""},
        {"id": 65_536},
        {"protocol": "radio"},
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NodeSettings(**settings)


def test_addresses() -> None:
    assert address("127.0.0.1:5005") == ("127.0.0.1", 5005)
    assert address("[::1]:5") == ("::1", 5)
    for text in ("5005", ":5", "host:", "host:x", "host:65536"):
        with pytest.raises(InvalidSetting, match="HOST:PORT"):
            address(text)
    with pytest.raises(InvalidSetting, match="no address"):
        Udp("no such host.invalid", 5)


def test_nobody_listens_and_packets_keep_their_distance(photo: Picture) -> None:
    link, begun = Udp("127.0.0.1", 9, pause=0.002), time.monotonic()
    assert asyncio.run(node(photo, framing=SMALL).run(link, 0.0)) == 2
    assert time.monotonic() - begun > 2 * 43 * 0.002
    link.close()


def test_modes_and_cameras_agree(photo: Picture) -> None:
    assert node(photo).camera.settings.mode is QVGA
