"""The gateway: datagrams of many nodes in, completed frames out. It has no thread and no socket (see `server.py`).

Every known node has a stream of its own (`stream.py`); nothing that one node sends reaches another's. Whatever comes
in, `receive` and `text` do not raise, and memory stays bounded: two open frames per node, `size` waiting frames per
subscription. A gateway that is restarted needs no memory of before: it goes on with whatever comes next. It belongs to
one thread, that of the event loop in which its subscriptions are read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from copy import copy

from modicum.apps.pixelgen.energy import EnergyModel
from modicum.apps.pixelgen.gateway.events import QUEUE, CompletedFrame, Statistics, Subscription
from modicum.apps.pixelgen.gateway.stream import KnownNode, Stream
from modicum.apps.pixelgen.radio.packets import sender
from modicum.errors import BadPacket, BadTag, UnknownName

TIMEOUT = 1.0


class Gateway:
    """Puts frames together.

    Args:
        nodes: who may speak, by id.
        timeout: seconds without a packet after which an incomplete frame is handed on.
        energy: what a frame costs its node; `EnergyModel()` by default.
        clock: seconds; `time.monotonic` by default.

    Attributes:
        refused: datagrams that name no known node.
    """

    def __init__(
        self,
        nodes: Mapping[int, KnownNode],
        timeout: float = TIMEOUT,
        energy: EnergyModel | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock, self.refused = clock, 0
        self._subscriptions: list[Subscription] = []
        model = energy or EnergyModel()
        self._streams = {id_: Stream(id_, node, timeout, model, self._publish) for id_, node in nodes.items()}

    def subscribe(self, size: int = QUEUE) -> Subscription:
        """Completed frames from now on; at most `size` wait, the oldest make room."""
        subscription = Subscription(size, self._subscriptions.remove)
        self._subscriptions.append(subscription)
        return subscription

    def receive(self, datagram: bytes) -> None:
        """Take whatever came in."""
        try:
            stream = self._streams.get(sender(datagram))
        except BadPacket:
            stream = None
        if stream is None:
            self.refused += 1
            return
        try:
            stream.receive(datagram, self.clock())
        except BadTag:
            stream.statistics.refused += 1
        except BadPacket:
            stream.statistics.damaged += 1

    def text(self, node: int, data: bytes) -> None:
        """Take characters from the serial line of a node.

        Raises:
            UnknownName: there is no such node.
        """
        if node not in self._streams:
            raise UnknownName.among("node", str(node), map(str, self._streams))
        self._streams[node].text(data, self.clock())

    def expire(self) -> None:
        """Hand on frames for which nothing came any more; to be called several times per `timeout`."""
        now = self.clock()
        for stream in self._streams.values():
            stream.expire(now)

    def statistics(self) -> dict[int, Statistics]:
        """Counts by node, as of now."""
        return {id_: copy(stream.statistics) for id_, stream in self._streams.items()}

    def _publish(self, frame: CompletedFrame) -> None:
        for subscription in self._subscriptions:
            subscription.put(frame)
