"""What a gateway tells: completed frames, and how it goes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from modicum.apps.pixelgen.energy import FrameEnergy
from modicum.apps.pixelgen.gateway.concealment import conceal
from modicum.apps.pixelgen.modes import Bytes
from modicum.apps.pixelgen.readings import Readings, Sound

QUEUE = 8


@dataclass
class Statistics:
    """Counts of one node, from the start of the gateway.

    Attributes:
        packets: that were believed.
        nbytes: their size.
        frames: that were handed on.
        complete: frames without a hole.
        holes: packets that never came, over all frames that were handed on.
        recovered: packets brought back by parity.
        duplicates: packets that came twice.
        late: packets of frames that had been closed.
        damaged: packets with a wrong checksum or of a wrong shape.
        refused: packets with a wrong tag.
    """

    packets: int = 0
    nbytes: int = 0
    frames: int = 0
    complete: int = 0
    holes: int = 0
    recovered: int = 0
    duplicates: int = 0
    late: int = 0
    damaged: int = 0
    refused: int = 0


@dataclass(frozen=True)
class CompletedFrame:
    """One frame with all that is known of it. Only `frame` where `mask` is True was measured.

    Attributes:
        node: who took it.
        number: its number, modulo 65536.
        frame: uint8 `[H, W]` as received, 0 where nothing is known.
        mask: bool `[H, W]`, True where a pixel is known.
        readings: the newest of this node; unknown until some have come.
        sound: the newest of this node.
        statistics: of this node, as of now.
        nbytes: received for this frame (over a serial line: characters).
        energy: modelled cost of the frame; None for a node on a wire.
        time: when it was complete, seconds of the gateway's clock.
    """

    node: int
    number: int
    frame: Bytes
    mask: NDArray[np.bool_]
    readings: Readings
    sound: Sound | None
    statistics: Statistics
    nbytes: int
    energy: FrameEnergy | None
    time: float

    @cached_property
    def concealed(self) -> Bytes:
        """uint8 `[H, W]`, holes filled from their neighbours; made when it is first asked for."""
        return conceal(self.frame, self.mask)


class Subscription:
    """Completed frames for one reader: an async iterator, bounded. Who reads too slowly misses the oldest.

    Attributes:
        dropped: frames that were missed.
    """

    def __init__(self, size: int, leave: Callable[[Subscription], None]) -> None:
        self.dropped = 0
        self._frames: deque[CompletedFrame] = deque(maxlen=size)
        self._news = asyncio.Event()
        self._leave, self._closed = leave, False

    def put(self, frame: CompletedFrame) -> None:
        """Add a frame; the oldest makes room."""
        self.dropped += len(self._frames) == self._frames.maxlen
        self._frames.append(frame)
        self._news.set()

    def take(self) -> list[CompletedFrame]:
        """All frames that wait, without waiting."""
        frames = list(self._frames)
        self._frames.clear()
        return frames

    def close(self) -> None:
        """End the iteration and take no more frames; a second time does nothing."""
        if not self._closed:
            self._closed = True
            self._news.set()
            self._leave(self)

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> CompletedFrame:
        while not self._frames:
            if self._closed:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._frames.popleft()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
