"""From packets to frames with a validity mask.

gateway = Gateway({7: KnownNode(key=b"secret")})
async with listening(gateway, "127.0.0.1", 5005):
    with gateway.subscribe() as frames:
        async for frame in frames:
            show(frame.concealed, frame.mask, frame.readings)
"""

from modicum.apps.pixelgen.gateway.events import CompletedFrame, Statistics, Subscription
from modicum.apps.pixelgen.gateway.gateway import Gateway
from modicum.apps.pixelgen.gateway.server import expiring, listening, reading
from modicum.apps.pixelgen.gateway.stream import KnownNode

__all__ = [
    "CompletedFrame",
    "Gateway",
    "KnownNode",
    "Statistics",
    "Subscription",
    "expiring",
    "listening",
    "reading",
]
