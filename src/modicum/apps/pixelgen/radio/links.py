"""Where a node's bytes go. A link has one verb, `send`, which takes one datagram (or one piece of text).

`InProcess` hands datagrams to a function, through a simulated channel if there is one. `Udp` sends them to another
process or machine. `Serial` writes to a line and waits whenever the line is full.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from modicum.apps.pixelgen.radio.channel import Air
from modicum.errors import InvalidSetting

HIGHEST_PORT = 65535


class Link(Protocol):
    """Anything that takes bytes."""

    async def send(self, datagrams: Sequence[bytes]) -> None:
        """Send these, in this order."""

    def close(self) -> None:
        """Let go of what the link holds."""


class InProcess:
    """A gateway in the same process.

    Args:
        deliver: takes one datagram.
        air: what happens on the way; nothing by default.
    """

    def __init__(self, deliver: Callable[[bytes], object], air: Air | None = None) -> None:
        self.deliver, self.air = deliver, air

    async def send(self, datagrams: Sequence[bytes]) -> None:
        """Deliver what the air leaves over."""
        for datagram in self.air.carry(datagrams) if self.air else datagrams:
            self.deliver(datagram)

    def close(self) -> None:
        """Nothing is held."""


class Udp:
    """A gateway at an address. Nobody has to be there: what nobody hears is lost, as on the air.

    Args:
        host: name or address.
        port: of the gateway.
        pause: seconds after every datagram, about the time that it would spend on the air.
        air: losses to simulate on the way.
    """

    def __init__(self, host: str, port: int, pause: float = 0.0, air: Air | None = None) -> None:
        self.pause, self.air = pause, air
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        except OSError as error:
            raise InvalidSetting(f"There is no address {host}:{port}.", "Give HOST:PORT.") from error
        self.socket = socket.socket(family, kind, protocol)
        self.socket.setblocking(False)
        self.address = address

    async def send(self, datagrams: Sequence[bytes]) -> None:
        """Send what the air leaves over, one after the other."""
        loop = asyncio.get_running_loop()
        for datagram in self.air.carry(datagrams) if self.air else datagrams:
            with suppress(ConnectionRefusedError):  # what the machine says when no gateway listens
                await loop.sock_sendto(self.socket, datagram, self.address)
            await asyncio.sleep(self.pause)

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


class Serial:
    """A serial line or pseudo-terminal.

    Args:
        line: non-blocking file descriptor (`open_line`); the link closes it.
    """

    def __init__(self, line: int) -> None:
        self.line = line

    async def send(self, datagrams: Sequence[bytes]) -> None:
        """Write all of it; gives way to others while the line is full."""
        rest = memoryview(b"".join(datagrams))
        while rest:
            try:
                rest = rest[os.write(self.line, rest) :]
            except BlockingIOError:
                await writable(self.line)

    def close(self) -> None:
        """Close the line."""
        os.close(self.line)


async def writable(line: int) -> None:
    """Wait until a file descriptor takes bytes again."""
    loop = asyncio.get_running_loop()
    free = loop.create_future()
    loop.add_writer(line, free.set_result, None)
    free.add_done_callback(lambda _: loop.remove_writer(line))
    await free


def address(text: str) -> tuple[str, int]:
    """Host and port of "HOST:PORT".

    Raises:
        InvalidSetting: it does not read like that.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > HIGHEST_PORT:
        raise InvalidSetting(f"{text!r} is not an address.", "Give HOST:PORT, such as 127.0.0.1:5005.")
    return host.strip("[]"), int(port)
