"""The web application: one page, its files, a websocket with views, and the recorder's switch."""

from __future__ import annotations

from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, quote, unquote

from anyio import create_task_group
from fastapi import Body, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import FileResponse, PlainTextResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocketDisconnect

from modicum.apps.pixelgen.viewer.broadcast import Broadcast
from modicum.apps.pixelgen.viewer.guard import COOKIE, Guard

STATIC = Path(__file__).with_name("static")
POLICY = "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'"
HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
FILMS = {".mp4": "video/mp4", ".gif": "image/gif"}
FORBIDDEN, NOT_FOUND, POLICY_VIOLATION = 403, 404, 1008


def application(broadcast: Broadcast, guard: Guard) -> Guarded:
    """The application behind its guard."""
    app = FastAPI(title="modicum viewer", docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/static", StaticFiles(directory=STATIC))

    @app.get("/")
    def page(request: Request) -> Response:
        if "token" in request.query_params:  # moved out of the address, which is remembered and shown
            moved = RedirectResponse("/", 303, headers={"Referrer-Policy": "no-referrer"})
            cookie = quote(request.query_params["token"], safe="")  # a header holds no other characters
            moved.set_cookie(COOKIE, cookie, httponly=True, samesite="strict")
            return moved
        return FileResponse(STATIC / "index.html", headers=HEADERS)

    @app.websocket("/views")
    async def views(socket: WebSocket) -> None:
        await socket.accept()
        async with create_task_group() as tasks:
            tasks.start_soon(_send, socket, broadcast)
            while (await socket.receive())["type"] != "websocket.disconnect":
                pass  # a page has nothing to say
            tasks.cancel_scope.cancel()

    @app.post("/recording")
    def switch(on: Annotated[bool, Body(embed=True)]) -> dict[str, Any]:
        (broadcast.recorder.start if on else broadcast.recorder.stop)()
        return broadcast.recorder.state()

    @app.get("/recording")
    def recording() -> Response:
        file = broadcast.recorder.joined()
        if file is None:
            raise HTTPException(NOT_FOUND, "Nothing has been recorded yet.")
        name, kind = f"{file.parent.name}{file.suffix}", FILMS[file.suffix]
        return FileResponse(file, media_type=kind, filename=name, headers={"Cache-Control": "no-store"})

    return Guarded(app, guard)


class Guarded:
    """An application that answers only whom the guard admits; pages and websockets alike.

    Args:
        app: to be protected.
        guard: the rules.
    """

    def __init__(self, app: Any, guard: Guard) -> None:
        self.app, self.guard = app, guard

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or self._admitted(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
        else:
            refusal = PlainTextResponse("Add ?token=... to the address.\n", FORBIDDEN)
            await refusal(scope, receive, send)

    def _admitted(self, scope: MutableMapping[str, Any]) -> bool:
        asked = HTTPConnection(scope)
        query = parse_qs(scope["query_string"].decode("latin-1"))
        given = query.get("token", [unquote(asked.cookies.get(COOKIE, ""))])[0]
        return self.guard.admits(asked.headers.get("host", ""), asked.headers.get("origin"), given)


async def _send(socket: WebSocket, broadcast: Broadcast) -> None:
    with suppress(WebSocketDisconnect):
        async for message in broadcast.messages():
            await socket.send_bytes(message)
