"""A gateway at a UDP port and on serial lines, on the event loop that runs."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from modicum.apps.pixelgen.gateway.gateway import Gateway
from modicum.apps.pixelgen.radio.serial_port import BAUD, open_line
from modicum.errors import DeviceUnavailable

TICK = 0.05
RECEIVE_BUFFER = 4 << 20
"""Room for several thousand packets while a frame is being handed on."""
CHUNK = 1 << 16


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.gateway.receive(data)


@asynccontextmanager
async def listening(gateway: Gateway, host: str, port: int) -> AsyncIterator[tuple[str, int]]:
    """A context in which the gateway hears a UDP port; yields the address (port 0 takes a free one).

    Raises:
        DeviceUnavailable: the port cannot be had.
    """
    loop = asyncio.get_running_loop()
    try:
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _Datagrams(gateway), local_addr=(host, port)
        )
    except OSError as error:
        raise DeviceUnavailable(
            f"{host}:{port} cannot be listened at: {error.strerror}.", "Choose another port."
        ) from error
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    try:
        async with expiring(gateway):
            yield transport.get_extra_info("sockname")[:2]
    finally:
        transport.close()


@asynccontextmanager
async def reading(gateway: Gateway, node: int, path: str | Path, baud: int = BAUD) -> AsyncIterator[None]:
    """A context in which the gateway reads the serial line of a node; a line that is cut falls silent."""
    loop, line = asyncio.get_running_loop(), open_line(path, baud)

    def ready() -> None:
        try:
            gateway.text(node, os.read(line, CHUNK))
        except BlockingIOError:
            pass
        except OSError:  # the other end is gone
            loop.remove_reader(line)

    loop.add_reader(line, ready)
    try:
        yield
    finally:
        loop.remove_reader(line)
        os.close(line)


@asynccontextmanager
async def expiring(gateway: Gateway) -> AsyncIterator[None]:
    """A context in which frames time out."""

    async def tick() -> None:
        while True:
            await asyncio.sleep(TICK)
            gateway.expire()

    task = asyncio.create_task(tick())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
