"""Viewers as processes of their own: killed while they record, restarted, and at the end of a serial line."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import urllib.request
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from websockets.sync.client import ClientConnection, connect

from modicum.apps.pixelgen.node import Camera, CameraSettings, Node, NodeSettings
from modicum.apps.pixelgen.radio.links import Serial, Udp
from modicum.apps.pixelgen.radio.serial_port import open_line
from modicum.cli.app import app
from modicum.cli.failures import explain

from .films import times

NUMBERS = 1 << 16
PATIENCE = 60


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def opened(viewer: subprocess.Popen[str]) -> str:
    """Address of the page, as a viewer prints it."""
    line = viewer.stdout.readline()  # type: ignore[union-attr]
    assert line.startswith("open "), viewer.stderr.read()  # type: ignore[union-attr]
    return line.split()[1]


def stream(page: str) -> ClientConnection:
    return connect(page.replace("http", "ws") + "views", max_size=None)


def view(page: ClientConnection) -> dict[str, Any]:
    """What is told about the next frame."""
    message = page.recv(PATIENCE, decode=False)
    return json.loads(message[4 : 4 + int.from_bytes(message[:4], "little")])


def record(page: str) -> None:
    body, kind = json.dumps({"on": True}).encode(), {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(page + "recording", body, kind)) as answer:
        assert json.load(answer)["on"]


def test_viewers_killed_while_they_record_and_restarted(scene: Path, tmp_path: Path, started: Any) -> None:
    udp, web = free_port(socket.SOCK_DGRAM), free_port(socket.SOCK_STREAM)
    node = started("node", scene, "--to", f"127.0.0.1:{udp}", "--period", 0.1, "--mode", "qqvga4")
    lives = []
    for kind in ("mp4", "gif"):
        films = tmp_path / kind
        to = ("--listen", f"127.0.0.1:{udp}", "--port", web, "--recordings", films, "--recording", kind)
        viewer = started("view", *to)
        page = opened(viewer)
        with stream(page) as frames:
            seen = [view(frames)]
            record(page)
            seen += [view(frames) for _ in range(7)]
        viewer.send_signal(signal.SIGKILL)  # in mid-stream and mid-recording
        assert viewer.wait(PATIENCE) == -signal.SIGKILL
        (folder,) = films.iterdir()
        (file,) = folder.glob(f"*.{kind}")
        shown = times(file)
        assert len(shown) >= seen[-1]["recording"]["frames"] - 1 >= 4
        assert all(a < b for a, b in pairwise(shown))
        lives.append(seen)
    assert node.poll() is None  # the node went on, and was heard again
    numbers = [known["number"] for seen in lives for known in seen]
    assert all(
        0 < (b - a) % NUMBERS < NUMBERS // 2 for a, b in pairwise(numbers)
    )  # nothing old, nothing twice
    (before,), (after,) = ({known["session"] for known in seen} for seen in lives)
    assert before != after  # what tells an open page to forget


def test_a_viewer_at_a_serial_line_that_hears_columns_too(
    photo: NDArray[np.uint8], tmp_path: Path, started: Any, wire: tuple[str, str]
) -> None:
    udp = free_port(socket.SOCK_DGRAM)
    heard = ("--listen", f"127.0.0.1:{udp}", "--serial", wire[1], "--baud", 921_600, "--columns")
    viewer = started("view", "--node", 4, *heard, "--port", 0, "--recordings", tmp_path)
    page = opened(viewer)

    cable = Node(iter([photo]), Camera(CameraSettings()), NodeSettings(id=4, protocol="text"))
    radio = Node(iter([photo]), Camera(CameraSettings()), NodeSettings(id=4, protocol="columns"))

    async def said(node: Node, link: Serial | Udp) -> None:
        await node.run(link, 0.0)
        link.close()

    with stream(page) as frames:
        asyncio.run(said(cable, Serial(open_line(wire[0]))))
        wired = view(frames)
        asyncio.run(said(radio, Udp("127.0.0.1", udp, pause=0.0003)))
        sent = view(frames)
    for known in (wired, sent):
        assert (known["node"], known["size"], known["lost"]["pixels"]) == (4, [324, 244], 0)
    assert sent["number"] == wired["number"] + 1
    assert wired["cost"]["energy"] is None  # by wire
    assert sent["cost"]["energy"]["packets"] == 324


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--serial", "none"], "No such file"),
        (["--serial", "none", "--baud", "123"], "123 baud"),
        (["--columns", "--node", "1:KEY"], "column mode"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_heard_ends_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    (tmp_path / "key.txt").write_text("secret")
    filled = [argument.replace("KEY", str(tmp_path / "key.txt")) for argument in arguments]
    assert explain(app, ["pixelgen", "view", "--port", "0", *filled]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert shown.startswith("Error")
    assert named in shown
