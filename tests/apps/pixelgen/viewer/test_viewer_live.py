"""The demonstration as a user runs it, a gateway that is restarted, and the page in a browser."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import websockets
from numpy.typing import NDArray
from PIL import Image

from modicum.apps.pixelgen.demo import Stage
from modicum.apps.pixelgen.gateway import Gateway, KnownNode
from modicum.apps.pixelgen.generator import DEFAULT
from modicum.apps.pixelgen.modes import QQVGA4
from modicum.apps.pixelgen.node import Camera, CameraSettings, Node, NodeSettings
from modicum.apps.pixelgen.radio.framing import Framing
from modicum.apps.pixelgen.radio.links import Udp
from modicum.apps.pixelgen.viewer.broadcast import Broadcast
from modicum.apps.pixelgen.viewer.guard import Guard
from modicum.apps.pixelgen.viewer.painting import Painter
from modicum.apps.pixelgen.viewer.recording import Recorder
from modicum.apps.pixelgen.viewer.serving import page_address, show
from modicum.cli import pixelgen_viewing
from modicum.cli.app import app
from modicum.cli.failures import explain

from .browser import CHROMIUM, browser
from .films import times

NUMBERS = 1 << 16


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def header(message: bytes) -> dict[str, Any]:
    return json.loads(message[4 : 4 + int.from_bytes(message[:4], "little")])


def test_a_gateway_that_is_restarted_shows_no_old_frame(
    painter: Painter, tmp_path: Path, photo: NDArray[np.uint8]
) -> None:
    udp, web = free_port(socket.SOCK_DGRAM), free_port(socket.SOCK_STREAM)

    async def seen(count: int) -> list[dict[str, Any]]:
        """What a page gets from a viewer that lives only for this."""
        gateway = Gateway({1: KnownNode()}, timeout=0.3)
        broadcast = Broadcast(painter, Recorder(tmp_path), gateway.clock)
        addresses: asyncio.Queue[str] = asyncio.Queue()
        where = {"listen": ("127.0.0.1", udp), "port": web, "ready": addresses.put_nowait}
        viewer = asyncio.create_task(show(gateway, broadcast, Guard(), **where))  # type: ignore[arg-type]
        address = (await addresses.get()).replace("http", "ws") + "views"
        async with websockets.connect(address, max_size=None) as page:
            found = [header(await page.recv()) for _ in range(count)]  # type: ignore[arg-type]
        viewer.cancel()
        await asyncio.gather(viewer, return_exceptions=True)
        return found

    async def main() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        settings = NodeSettings(framing=Framing(mode=QQVGA4), first=NUMBERS - 3)
        node = Node(iter([photo] * 10_000), Camera(CameraSettings(mode=QQVGA4)), settings)
        sending = asyncio.create_task(node.run(Udp("127.0.0.1", udp), period=0.05))
        async with asyncio.timeout(30):
            result = await seen(3), await seen(3)
        assert not sending.done()  # the node went on
        sending.cancel()
        return result

    before, after = asyncio.run(main())
    numbers = [known["number"] for known in before + after]
    assert all(0 < (b - a) % NUMBERS < 1000 for a, b in pairwise(numbers))
    assert before[0]["session"] != after[0]["session"]
    assert after[0]["statistics"]["frames"] < before[-1]["statistics"]["frames"] + 3


def test_the_demo_ends_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["demo", "--seconds", "3", "--port", "0", "--mode", "qqvga4", "--period", "0.3"]
    assert explain(app, ["pixelgen", *line, "--recordings", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["painted"] >= 1


def test_the_compressed_generator_paints_by_default() -> None:
    assert pixelgen_viewing.GENERATOR == Stage().generator == DEFAULT == "pixelgen-nano-small"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["demo", "--host", "0.0.0.0"], "--token"),
        (["view", "--host", "0.0.0.0"], "--token"),
        (["demo", "--host", "0.0.0.0", "--token", "none.txt"], "none.txt"),
        (["demo", "--port", "TAKEN"], "--port"),
        (["demo", "--generator", "none"], "none"),
        (["view", "--generator", "pixelgen-nan"], "'pixelgen-nano"),
        (["view", "--generator", "diffusers:nobody/paints"], "--download"),
        (
            ["demo", "--generator", "diffusers:nobody/paints", "--segmenter", "nobody/segments"],
            "nobody/segments",
        ),
        (["demo", "--segmenter", "nobody/segments"], "--segmenter"),
        (["demo", "--source", "none.png", "--port", "0"], "none.png"),
        (["demo", "--mode", "vga"], "'qvga'"),
        (["view", "--node", "x"], "--node 'x'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_shown_ends_in_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert explain(app, ["pixelgen", *(a.replace("TAKEN", port) for a in arguments)]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert shown.startswith("Error")
    assert named in shown


def test_without_a_web_server_the_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert explain(app, ["pixelgen", "demo", "--port", "0"]) == 2
    assert "modicum[viewer]" in capsys.readouterr().err


def test_addresses() -> None:
    assert page_address(Guard("::1"), 80) == "http://[::1]:80/"
    assert page_address(Guard("0.0.0.0", b"a&b"), 80) == "http://0.0.0.0:80/?token=a%26b"


@pytest.mark.skipif(CHROMIUM is None, reason="no browser is installed")
def test_the_page_in_a_browser(tmp_path: Path, started: Any) -> None:
    line = [
        "demo",
        "--port",
        "0",
        "--mode",
        "qqvga",
        "--period",
        "0.5",
        "--recordings",
        str(tmp_path / "films"),
    ]
    demo = started(*line)
    with browser(tmp_path / "profile") as page:
        page.open(demo.stdout.readline().removeprefix("open ").strip())
        page.until("document.getElementById('status').textContent === 'live'")
        page.says("document.getElementById('split').focus()")
        for _ in range(3):
            page.press("ArrowRight", 39)
        assert page.says("document.getElementById('split').value") == "53"
        wiped = "getComputedStyle(document.getElementById('wipe')).getPropertyValue('--split')"
        assert page.says(wiped) == "53%"
        page.says("document.querySelector('[data-layer=overlay]').click()")
        page.until("document.getElementById('provenance').textContent.includes('sound')")
        assert page.says("document.querySelector('[data-layer=overlay]').ariaPressed") == "true"
        page.says("document.getElementById('record').click()")
        page.until("document.getElementById('download').innerText === 'Save MP4'")
        page.until("/Stop .([3-9]|[1-9][0-9])./.test(document.getElementById('record').innerText)")
        named = "[...document.querySelectorAll('img')].every((i) => i.alt && (i.naturalWidth || i.hidden))"
        page.until(named)
        assert page.says("document.getElementById('immersive').disabled")  # flat, as there is no headset
        page.says("const s = document.getElementById('split'); s.value = 100; s.oninput({ target: s })")
        cut = "getComputedStyle(document.querySelector('.side.right')).clipPath"
        assert page.says(cut) == "inset(0px 0px 0px 100%)"  # names no colour where none is shown
        page.open(page.says("location.href"), width=390, height=844)
        page.until("document.getElementById('status').textContent === 'live'")
        assert page.says("document.documentElement.scrollWidth") <= 390
        page.shoot(tmp_path / "phone.png")
        assert Image.open(tmp_path / "phone.png").width == 390
        demo.send_signal(signal.SIGKILL)
        page.until("document.getElementById('status').textContent.startsWith('connection lost')")
        assert page.says("document.getElementById('wipe').hasAttribute('data-empty')")
        assert page.says("document.getElementById('record').disabled")
        assert page.says("document.getElementById('record').innerText") == "Record"
        assert page.says("document.getElementById('download').hidden")
        badge = "getComputedStyle(document.getElementById('badge')).visibility"
        assert page.says(badge) == "hidden"  # of a picture that is gone
        line[2] = str(urlsplit(page.says("location.href")).port)
        again = started(*line)
        page.until("document.getElementById('status').textContent === 'live'")  # by itself
        assert not page.says("document.getElementById('record').disabled")
        assert page.says("document.getElementById('record').innerText") == "Record"  # of the new viewer
        assert [c for c in page.complaints if "ERR_CONNECTION" not in c] == []
        again.kill()
    (film,) = (tmp_path / "films").rglob("film.mp4")
    assert times(film)
