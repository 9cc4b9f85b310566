"""Gateway, painter and web server on one event loop."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import quote

from modicum.apps.pixelgen.gateway import Gateway, listening
from modicum.apps.pixelgen.viewer.broadcast import Broadcast
from modicum.apps.pixelgen.viewer.guard import Guard
from modicum.errors import DeviceUnavailable, MissingExtra

GRACE = 2
"""Seconds that open connections get to end."""

Sender = Callable[[str, int], Coroutine[Any, Any, object]]


async def show(
    gateway: Gateway,
    broadcast: Broadcast,
    guard: Guard,
    *,
    listen: tuple[str, int],
    port: int,
    seconds: float | None = None,
    ready: Callable[[str], None] = lambda address: None,
    sender: Sender | None = None,
) -> None:
    """Hear nodes and show their frames until a signal comes or the time is over.

    Args:
        gateway: puts frames together.
        broadcast: paints them.
        guard: who may look, and where the server binds.
        listen: host and UDP port for nodes; port 0 takes a free one.
        port: of the web server; 0 takes a free one.
        seconds: to run; until a signal by default.
        ready: told the address of the page.
        sender: a node to run beside, given the host and port of the gateway.

    Raises:
        DeviceUnavailable: a port cannot be had.
        MissingExtra: the web server is not installed.
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with listening(gateway, *listen) as heard, serving(broadcast, guard, port) as address:
        ready(address)
        running = [broadcast.follow(gateway), stop.wait(), *([sender(*heard)] if sender else [])]
        tasks = [asyncio.ensure_future(work) for work in running]
        try:
            done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # what went wrong is raised here
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            broadcast.recorder.stop()  # the last frame is written


@asynccontextmanager
async def serving(broadcast: Broadcast, guard: Guard, port: int) -> AsyncIterator[str]:
    """A context in which the page can be opened; yields its address.

    Raises:
        DeviceUnavailable: the port cannot be had.
        MissingExtra: the web server is not installed.
    """
    try:
        import uvicorn

        from modicum.apps.pixelgen.viewer.application import application
    except ImportError as error:
        raise MissingExtra.of("fastapi and uvicorn", "viewer", "The viewer") from error

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # signals are our own business

    line = _bound(guard.host, port)
    options = {"log_level": "error", "access_log": False, "timeout_graceful_shutdown": GRACE}
    server = Server(uvicorn.Config(application(broadcast, guard), lifespan="off", **options))  # type: ignore[arg-type]
    task = asyncio.create_task(server.serve([line]))
    try:
        yield page_address(guard, line.getsockname()[1])
    finally:
        server.should_exit = True
        await task
        line.close()


def page_address(guard: Guard, port: int) -> str:
    """What a user opens; it holds the token, if there is one."""
    host = f"[{guard.host}]" if ":" in guard.host else guard.host
    token = f"?token={quote(guard.token, safe='')}" if guard.token else ""
    return f"http://{host}:{port}/{token}"


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens already: a port that is taken is known at once, and who connects at once waits."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        line = socket.socket(family, socket.SOCK_STREAM)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        line.bind(address)
        line.listen()
    except OSError as error:
        raise DeviceUnavailable(
            f"{host}:{port} cannot be served at: {error.strerror}.", "Choose another --port."
        ) from error
    return line
