from __future__ import annotations

import asyncio
import io
import json
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from modicum.apps.pixelgen.gateway import CompletedFrame, Gateway
from modicum.apps.pixelgen.viewer.application import application
from modicum.apps.pixelgen.viewer.broadcast import FRESH, Broadcast
from modicum.apps.pixelgen.viewer.guard import Guard, is_loopback
from modicum.apps.pixelgen.viewer.painting import Painted
from modicum.apps.pixelgen.viewer.recording import Kind, Recorder
from modicum.errors import InvalidSetting

from .films import times

Frames = Callable[..., CompletedFrame]
HERE, THERE = "http://127.0.0.1:8005", "http://camera.example:8005"
VIEWS, VIEWS_THERE = "ws://127.0.0.1:8005/views", "ws://camera.example:8005/views"
TOKEN = "sécret & 密; more"


def parsed(message: bytes) -> tuple[dict[str, Any], dict[str, Image.Image]]:
    (length,) = struct.unpack_from("<I", message)
    known, place, pictures = json.loads(message[4 : 4 + length]), 4 + length, {}
    for part in known["parts"]:
        pictures[part["name"]] = Image.open(io.BytesIO(message[place : place + part["size"]]))
        assert Image.MIME[pictures[part["name"]].format or ""] == part["type"]
        place += part["size"]
    assert place == len(message)
    return known, pictures


def publish(broadcast: Broadcast, *frames: CompletedFrame) -> None:
    """Frames through a gateway's subscription, each painted before the next comes."""

    async def main() -> None:
        gateway = Gateway({})
        task = asyncio.create_task(broadcast.follow(gateway))
        await asyncio.sleep(0)
        for frame in frames:
            before = broadcast.painted
            gateway._publish(frame)
            while broadcast.painted == before:
                await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(main())


@pytest.fixture
def client(broadcast: Broadcast) -> Iterator[TestClient]:
    with TestClient(application(broadcast, Guard()), HERE) as client:
        yield client


def test_the_page_needs_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for name in ("style.css", "app.js", "plots.js", "stream.js", "immersive.js"):
        found = client.get(f"/static/{name}")
        assert found.status_code == 200
        assert "//" not in found.text.replace("://$", "").replace("http://www.w3.org/2000/svg", "").replace(
            "// ", ""
        )
    assert client.get("/openapi.json").status_code == 404


def test_a_view_is_one_message(
    client: TestClient, broadcast: Broadcast, completed: Frames, clock: Any
) -> None:
    publish(broadcast, completed(4, clock()))
    with client.websocket_connect(VIEWS) as socket:
        known, pictures = parsed(socket.receive_bytes())
    assert known["number"] == 4
    assert known["session"] == broadcast.session
    assert {name: picture.size for name, picture in pictures.items()} == dict.fromkeys(
        ("raw", "generated", "overlay"), (162, 122)
    )
    assert pictures["raw"].format == "PNG"  # what was measured is not changed by a codec


def test_who_comes_late_sees_no_old_frame(broadcast: Broadcast, completed: Frames, clock: Any) -> None:
    async def first() -> int | None:
        messages = broadcast.messages()
        try:
            async with asyncio.timeout(0.05):
                return parsed(await anext(messages))[0]["number"]
        except TimeoutError:
            return None

    publish(broadcast, completed(4, clock()))
    clock.now += FRESH - 0.1
    assert asyncio.run(first()) == 4
    clock.now += 0.2
    assert asyncio.run(first()) is None
    publish(broadcast, completed(5, clock()))
    assert asyncio.run(first()) == 5


def test_the_newest_frame_wins_while_one_is_painted(broadcast: Broadcast, completed: Frames) -> None:
    begun, go, numbers, paint = threading.Event(), threading.Event(), [], broadcast.painter.paint

    def slow(frame: CompletedFrame) -> Painted:
        numbers.append(frame.number)
        begun.set()
        assert go.wait(10)
        return paint(frame)

    broadcast.painter.paint = slow  # type: ignore[method-assign]

    async def main() -> None:
        gateway = Gateway({})
        task = asyncio.create_task(broadcast.follow(gateway))
        await asyncio.sleep(0)
        gateway._publish(completed(0))
        assert await asyncio.to_thread(begun.wait, 10)
        for number in range(1, 50):
            gateway._publish(completed(number))
        go.set()
        while broadcast.painted < 2:
            await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(main())
    assert numbers == [0, 49]
    assert broadcast.skipped == 48


@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_recording_over_the_web(broadcast: Broadcast, completed: Frames, tmp_path: Path, kind: Kind) -> None:
    broadcast.recorder = Recorder(tmp_path / "films", kind)
    with TestClient(application(broadcast, Guard()), HERE) as client:
        assert client.get("/recording").status_code == 404
        assert client.post("/recording", json={"on": True}).json() == {"on": True, "frames": 0, "kind": kind}
        publish(broadcast, completed(0), completed(1, 1.0))
        stopped = client.post("/recording", json={"on": False}).json()
        assert stopped == {"on": False, "frames": 2, "kind": kind}
        film = client.get("/recording")
        assert film.headers["content-type"] == {"mp4": "video/mp4", "gif": "image/gif"}[kind]
        assert f".{kind}" in film.headers["content-disposition"]
        (tmp_path / f"fetched.{kind}").write_bytes(film.content)
        assert len(times(tmp_path / f"fetched.{kind}")) == 2
        assert client.post("/recording", json={"on": "maybe"}).status_code == 422


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "camera.example", ""])
@pytest.mark.parametrize("token", [None, b""])
def test_other_hosts_are_refused_without_a_token(host: str, token: bytes | None) -> None:
    with pytest.raises(InvalidSetting, match="--token"):
        raise InvalidSetting(str(Guard(host, token)))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_needs_no_token(host: str) -> None:
    assert is_loopback(host)
    assert Guard(host).admits(f"[{host}]:8005" if ":" in host else f"{host}:8005", None, None)


def test_pages_of_other_sites_are_kept_out(client: TestClient) -> None:
    assert (
        client.get("/", headers={"host": "evil.example"}).status_code == 403
    )  # a name pointed at this machine
    assert client.get("/", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post("/recording", json={"on": True}, headers={"origin": "null"}).status_code == 403
    assert client.get("/", headers={"origin": HERE}).status_code == 200
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect(VIEWS, headers={"origin": "http://e.com"}),
    ):
        pass


def test_a_token_opens_the_door_once_and_for_all(broadcast: Broadcast, completed: Frames, clock: Any) -> None:
    app = application(broadcast, Guard("0.0.0.0", TOKEN.encode()))
    publish(broadcast, completed(4, clock()))
    with TestClient(app, THERE) as client:
        for path in ("/", "/static/app.js", "/recording", "/?token=wrong", "/?token="):
            assert client.get(path).status_code == 403
        with pytest.raises(WebSocketDisconnect), client.websocket_connect(VIEWS_THERE):
            pass
        moved = client.get("/", params={"token": TOKEN}, follow_redirects=False)
        assert (moved.status_code, moved.headers["location"]) == (303, "/")
        assert "httponly" in moved.headers["set-cookie"].lower()
        assert client.get("/").status_code == 200  # by the cookie
        with client.websocket_connect(VIEWS_THERE) as socket:
            assert parsed(socket.receive_bytes())[0]["number"] == 4


@given(st.text(max_size=20))
def test_only_the_token_is_the_token(given_token: str) -> None:
    guard = Guard("0.0.0.0", b"secret")
    assert guard.admits("camera:1", None, given_token) == (given_token == "secret")
    assert not guard.admits("camera:1", None, None)
