"""Nodes and gateways as processes of their own, talking over UDP and a pseudo-terminal."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from modicum.apps.pixelgen.gateway import CompletedFrame, Gateway, KnownNode, listening, reading
from modicum.apps.pixelgen.node import Camera, CameraSettings, Node, NodeSettings
from modicum.apps.pixelgen.radio.framing import Framing
from modicum.apps.pixelgen.radio.links import Serial, Udp
from modicum.apps.pixelgen.radio.serial_port import open_line
from modicum.cli.app import app
from modicum.cli.failures import explain
from modicum.errors import DeviceUnavailable

Picture = NDArray[np.uint8]
SMALL = ["--mode", "qqvga4"]


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def finished(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return out


def until(condition: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def records(folder: Path) -> list[dict[str, Any]]:
    with suppress(FileNotFoundError):
        return [json.loads(line) for line in (folder / "frames.jsonl").read_text().splitlines()]
    return []


def test_nodes_and_a_gateway_that_is_killed_and_restarted(scene: Path, tmp_path: Path, started: Any) -> None:
    key, port = tmp_path / "key.txt", free_port()
    key.write_text("secret\n")
    listen = ["--listen", f"127.0.0.1:{port}", "--node", f"1:{key}", "--node", 2, "--timeout", 0.3]
    to = ["--to", f"127.0.0.1:{port}", "--period", 0, *SMALL]
    signed = started(
        "node", scene, "--id", 1, "--key", key, "--interleave", "--parity", 6, "--loss", 0.1, *to
    )
    plain = started("node", scene, "--id", 2, "--seed", 1, *to)
    forged = started("node", scene, "--id", 1, *to)  # without the key
    stranger = started("node", scene, "--id", 3, *to)

    before, after = tmp_path / "before", tmp_path / "after"
    first = started("gateway", *listen, "--out", before)
    until(lambda: {r["node"] for r in records(before)} == {1, 2})
    first.kill()
    first.communicate()
    last = {node: [r["number"] for r in records(before) if r["node"] == node][-1] for node in (1, 2)}

    second = started("gateway", *listen, "--out", after, "--json")
    until(lambda: {r["node"] for r in records(after) if r["known"] == 1.0} == {1, 2})
    assert all(node.poll() is None for node in (signed, plain, forged, stranger))  # the nodes went on
    second.send_signal(signal.SIGINT)
    found = json.loads(finished(second))

    for node in (1, 2):
        numbers = [r["number"] for r in records(after) if r["node"] == node]
        assert all((b - a) % 65_536 < 32_768 for a, b in zip([last[node], *numbers], numbers, strict=False))
    assert found["refused"] > 0  # the stranger
    assert found["nodes"]["1"]["refused"] > 0  # the forger
    assert found["nodes"]["1"]["recovered"] > 0
    whole = next(r for r in records(after) if r["known"] == 1.0)
    assert whole["energy"]["basis"] == "model"
    assert whole["sentence"].startswith("A photograph")
    pixels = np.asarray(Image.open(after / f"{whole['name']}-frame.png"))
    assert pixels.shape == (122, 162)
    assert np.asarray(Image.open(after / f"{whole['name']}-mask.png")).min() == 255
    assert abs(pixels.mean() - 60) < 20


def test_text_over_a_serial_line(scene: Path, tmp_path: Path, started: Any, wire: tuple[str, str]) -> None:
    out, table = tmp_path / "out", tmp_path / "sensors.csv"
    table.write_text("Temperature,Humidity,Pressure,Lux\n21.5,40,101325,300\n")
    ours = ["--listen", f"127.0.0.1:{free_port()}", "--node", 4, "--serial", wire[1], "--out", out]
    gateway = started("gateway", *ours, "--count", 2)
    assert "listening" in gateway.stdout.readline()  # opening a line throws away what waits in it
    node = started(
        "node", scene, "--serial", wire[0], "--id", 4, "--sensors", table, "--period", 0, "--count", 2
    )
    assert "2 frames sent" in finished(node)
    assert "100.0% known" in finished(gateway)
    first, second = records(out)
    assert (first["known"], second["known"]) == (1.0, 1.0)
    assert second["readings"]["temperature"] == 21.5
    assert second["tokens"] == [3, 2, 2, 0, 0]
    assert second["energy"] is None


def test_udp_and_serial_line_in_one_process(photo: Picture, wire: tuple[str, str]) -> None:
    settings = NodeSettings(framing=Framing(interleave=True, parity=10))
    radio = Node(iter([photo] * 2), Camera(CameraSettings()), settings)
    cable = Node(iter([photo]), Camera(CameraSettings()), NodeSettings(id=2, protocol="text"))

    async def main() -> list[CompletedFrame]:
        gateway = Gateway({1: KnownNode(), 2: KnownNode()}, timeout=0.3)
        async with listening(gateway, "127.0.0.1", 0) as (host, port), reading(gateway, 2, wire[1]):
            with pytest.raises(DeviceUnavailable, match=str(port)):
                async with listening(gateway, host, port):
                    pass
            udp, serial = Udp(host, port, pause=0.0003), Serial(open_line(wire[0]))
            with gateway.subscribe() as frames:
                await asyncio.gather(radio.run(udp, 0.0), cable.run(serial, 0.0))
                async with asyncio.timeout(20):
                    found = [await anext(frames) for _ in range(3)]
                    await udp.send(radio.settings.framing.packets(found[0].frame, 1, radio.number)[:99])
                    cut = await anext(frames)  # nothing follows: it is handed on when its time is over
            assert 0 < cut.mask.mean() < 0.4
            udp.close()
            serial.close()
        return found

    found = asyncio.run(main())
    assert sorted(frame.node for frame in found) == [1, 1, 2]
    assert all(frame.mask.all() for frame in found)
    first = next(frame for frame in found if frame.node == 1)
    cabled = next(frame for frame in found if frame.node == 2)
    assert np.array_equal(first.frame, cabled.frame)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["node", "none.png"], "none.png"),
        (["node", "SCENE", "--parity", "1"], "parity"),
        (["node", "SCENE", "--mode", "vga"], "'qvga'"),
        (["node", "SCENE", "--columns", "--interleave"], "324 x 244"),
        (["node", "SCENE", "--to", "nowhere"], "HOST:PORT"),
        (["node", "SCENE", "--key", "none.txt"], "none.txt"),
        (["node", "SCENE", "--key", "EMPTY"], "empty"),
        (["node", "SCENE", "--serial", "none"], "No such file"),
        (["node", "SCENE", "--sensors", "none.csv"], "none.csv"),
        (["node", "SCENE", "--sound", "SCENE"], "WAV"),
        (["gateway", "--node", "x"], "--node 'x'"),
        (["gateway", "--node", "65536"], "65536"),
        (["gateway"], "--node"),
        (["gateway", "--node", "1:EMPTY"], "empty"),
        (["gateway", "--node", "1", "--listen", "1"], "HOST:PORT"),
        (["energy", "-s", "volt=3"], "'voltage'"),
        (["energy", "-s", "voltage"], "voltage"),
        (["energy", "-s", "voltage=-1"], "voltage"),
        (["energy", "--mode", "qqvga5"], "'qqvga'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_work_ends_in_one_sentence(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    (tmp_path / "empty.txt").touch()
    filled = [a.replace("SCENE", str(scene)).replace("EMPTY", str(tmp_path / "empty.txt")) for a in arguments]
    assert explain(app, ["pixelgen", *filled]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert shown.startswith("Error")
    assert named in shown


def test_the_energy_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(app, ["pixelgen", "energy", "--columns", "--json", "-s", "sleep_current=0"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["basis"] == "model"
    assert found["frames"]["qvga"]["packets"] == 324
    assert found["frames"]["qvga"]["sleep"] == 0
    assert explain(app, ["pixelgen", "energy"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "model, not measured" in shown
    assert "packets 335 2519 2519" in shown
    assert "published firmware" in shown
