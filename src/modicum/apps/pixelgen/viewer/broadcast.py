"""The newest view, to everybody who looks. Nothing queues: who is slow misses views, never sees them late.

From the gateway to the browser there are three places where a frame can wait, and each holds one: the subscription,
the painter, `latest`. A view that nobody fetched within `FRESH` seconds is not shown any more, so that who comes after
a break sees nothing instead of the past.

A message is one view as a whole, so that pictures and readings never mix:

    u32 length of the header | header, JSON with "parts": [{"name", "type", "size"}] | the parts, one after the other
"""

from __future__ import annotations

import asyncio
import io
import json
import secrets
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

from modicum.apps.pixelgen.energy import EnergyModel
from modicum.apps.pixelgen.gateway import CompletedFrame, Gateway
from modicum.apps.pixelgen.modes import Bytes
from modicum.apps.pixelgen.viewer.facts import facts
from modicum.apps.pixelgen.viewer.painting import Painter
from modicum.apps.pixelgen.viewer.recording import Recorder

FRESH = 10.0
QUALITY = 90


class Broadcast:
    """Paints what the gateway hands on and holds the newest view.

    Args:
        painter: makes the pictures.
        recorder: keeps them, while it is on.
        clock: seconds; that of the gateway.
        energy: model of the colour cameras beside.

    Attributes:
        session: another one whenever the program is started; tells a page to forget what it has drawn.
        painted: views made.
        skipped: frames that came while another was being painted, and made room for a newer one.
    """

    def __init__(
        self,
        painter: Painter,
        recorder: Recorder,
        clock: Callable[[], float],
        energy: EnergyModel | None = None,
    ) -> None:
        self.painter, self.recorder, self.clock = painter, recorder, clock
        self.energy, self.session = energy or EnergyModel(), secrets.token_hex(4)
        self.painted = self.skipped = 0
        self._latest: tuple[float, bytes] | None = None
        self._news = asyncio.Event()

    async def follow(self, gateway: Gateway) -> None:
        """Paint the newest frame, again and again, in a thread of its own."""
        with gateway.subscribe(size=1) as frames:
            async for frame in frames:
                self.skipped = frames.dropped
                message = await asyncio.to_thread(self._message, frame)
                self._latest, self.painted = (frame.time, message), self.painted + 1
                self._news.set()
                self._news = asyncio.Event()

    async def messages(self) -> AsyncIterator[bytes]:
        """The newest view if it is fresh, and then whatever is newest when the last one has been taken."""
        seen = None
        while True:
            news, latest = self._news, self._latest
            if latest and latest is not seen and self.clock() - latest[0] < FRESH:
                seen = latest
                yield latest[1]
            else:
                await news.wait()

    def _message(self, frame: CompletedFrame) -> bytes:
        painted = self.painter.paint(frame)
        self.recorder.add(painted)
        known = facts(painted, self.painter.name, self.energy)
        known |= {"session": self.session, "skipped": self.skipped, "recording": self.recorder.state()}
        parts = {
            "raw": ("image/png", encoded(painted.raw, "PNG")),
            "generated": ("image/jpeg", encoded(painted.generated, "JPEG")),
            "overlay": ("image/jpeg", encoded(painted.overlay, "JPEG")),
        }
        return packed(known, parts)


def packed(known: dict[str, Any], parts: dict[str, tuple[str, bytes]]) -> bytes:
    """One message of facts and pictures."""
    listed = [{"name": name, "type": kind, "size": len(data)} for name, (kind, data) in parts.items()]
    header = json.dumps({**known, "parts": listed}).encode()
    return b"".join((struct.pack("<I", len(header)), header, *(data for _, data in parts.values())))


def encoded(picture: Bytes, kind: str) -> bytes:
    """A picture uint8 `[H, W, 3]` as a PNG or JPEG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, quality=QUALITY)
    return file.getvalue()
