"""The stream of one node: its open frames, its newest readings, its counts.

A frame is handed on when it is complete, when nothing came for it during `timeout`, or when newer ones push it out;
always in order, so that nobody sees an old frame after a new one.

Numbers of frames run in a circle of 65536. A number up to 64 behind the newest frame that was handed on is late and
dropped; any other begins a new stretch, which is how a restarted node is taken back at once (nodes begin at a random
number).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from modicum.apps.pixelgen.energy import EnergyModel, FrameEnergy
from modicum.apps.pixelgen.gateway.assembly import Assembly
from modicum.apps.pixelgen.gateway.events import CompletedFrame, Statistics
from modicum.apps.pixelgen.modes import QVGA, Bytes
from modicum.apps.pixelgen.radio.columns import ColumnFrame
from modicum.apps.pixelgen.radio.packets import ATTRIBUTE_BYTES, Kind, Packet, decode, payload_size
from modicum.apps.pixelgen.radio.telemetry import unpack_readings, unpack_sound
from modicum.apps.pixelgen.radio.text_reader import TextFrame, TextReader
from modicum.apps.pixelgen.readings import Readings, Sound
from modicum.errors import InvalidSetting

OPEN_FRAMES = 2
LATE = 64
NUMBERS = 1 << 16
PERIOD = 12.0
"""Seconds from frame to frame until two have come; the loop of the published firmware."""


@dataclass(frozen=True)
class KnownNode:
    """A node that may speak.

    Attributes:
        key: its secret; None believes every packet with a right checksum.
        columns: it sends one column per packet, without headers and without a tag.
        spin: how the frames of its serial line are turned.
    """

    key: bytes | None = None
    columns: bool = False
    spin: int = 1

    def __post_init__(self) -> None:
        if self.columns and self.key:
            raise InvalidSetting("A packet of the column mode has no room for a tag.", "Leave out the key.")


class Stream:
    """What one node says.

    Args:
        id_: of the node.
        node: what is known of it.
        timeout: seconds without a packet after which an incomplete frame is handed on.
        energy: what a frame costs.
        deliver: takes frames that are handed on.
    """

    def __init__(
        self,
        id_: int,
        node: KnownNode,
        timeout: float,
        energy: EnergyModel,
        deliver: Callable[[CompletedFrame], None],
    ) -> None:
        self.id, self.node, self.timeout, self.energy, self.deliver = id_, node, timeout, energy, deliver
        self.statistics, self.readings = Statistics(), Readings()
        self.sound: Sound | None = None
        self._open: dict[int, tuple[Assembly, float]] = {}  # number -> frame, time of its last packet
        self._columns, self._reader = ColumnFrame(), TextReader(node.spin)
        self._closed: int | None = None
        self._column_time = self._frame_time = -np.inf

    def receive(self, datagram: bytes, now: float) -> None:
        """Take a datagram of this node.

        Raises:
            BadPacket: it is not believed.
        """
        if self.node.columns:
            self._column(datagram, now)
        else:
            packet = decode(datagram, self.node.key)
            handle = {Kind.FRAME: self._frame, Kind.SENSORS: self._sensors, Kind.AUDIO: self._audio}
            handle[packet.kind](packet, now)
        self.statistics.packets += 1
        self.statistics.nbytes += len(datagram)

    def text(self, data: bytes, now: float) -> None:
        """Take characters from the serial line of this node; whatever they are."""
        for event in self._reader.feed(data):
            if isinstance(event, TextFrame):
                self._hand_on(self._following(), event.pixels, event.mask, event.characters, None, now)
            else:
                self.readings = event
        self.statistics.nbytes += len(data)

    def expire(self, now: float) -> None:
        """Hand on the frames for which nothing came any more."""
        for number in [n for n, (_, last) in self._open.items() if now - last >= self.timeout]:
            if number in self._open:  # closing one closes the earlier ones too
                self._close(number, now)

    def _sensors(self, packet: Packet, now: float) -> None:
        heard = self.readings
        self.readings = replace(unpack_readings(packet.payload), level=heard.level, frequency=heard.frequency)

    def _audio(self, packet: Packet, now: float) -> None:
        self.sound = sound = unpack_sound(packet.payload)
        self.readings = replace(self.readings, level=sound.level, frequency=sound.frequency)

    def _frame(self, packet: Packet, now: float) -> None:
        number = packet.frame
        if number in self._open:
            assembly = self._open[number][0]
            assembly.add(packet)
        elif self._late(number):
            self.statistics.late += 1
            return
        else:
            assembly = Assembly(packet, payload_size(self.node.key))
            assembly.add(packet)  # before the frame is opened: a bad first packet opens nothing
            self._make_room(number, now)
        self._open[number] = assembly, now
        if assembly.complete:
            self._close(number, now)

    def _column(self, datagram: bytes, now: float) -> None:
        if now - self._column_time >= self.timeout:  # the rest of the last frame will not come
            self._columns = ColumnFrame()
        self._column_time = now
        frame = self._columns.add(datagram)
        if frame is not None:
            known = np.ones(frame.shape, bool)
            energy = self._energy(QVGA.nbytes, ATTRIBUTE_BYTES, 0, now)
            self._hand_on(self._following(), frame, known, QVGA.nbytes, energy, now)

    def _make_room(self, number: int, now: float) -> None:
        """Close what stands in the way of a new frame: another stretch of numbers, or too many open frames."""
        if any(abs(_ahead(number, other)) > LATE for other in self._open):
            self._close(self._in_order()[-1], now)
        elif len(self._open) >= OPEN_FRAMES:
            self._close(self._in_order()[0], now)

    def _close(self, number: int, now: float) -> None:
        """Hand on a frame, after those that are older."""
        for other in self._in_order():
            if _ahead(other, number) <= 0:
                self._finish(other, now)

    def _finish(self, number: int, now: float) -> None:
        assembly, _ = self._open.pop(number)
        counts = self.statistics
        counts.holes += int((~assembly.got).sum())
        counts.recovered += assembly.recovered
        counts.duplicates += assembly.duplicates
        payload = payload_size(self.node.key)
        energy = self._energy(assembly.sent, payload, ATTRIBUTE_BYTES - payload, now)
        self._hand_on(number, *assembly.picture(), assembly.received, energy, now)

    def _hand_on(
        self,
        number: int,
        pixels: Bytes,
        mask: NDArray[np.bool_],
        nbytes: int,
        energy: FrameEnergy | None,
        now: float,
    ) -> None:
        self._closed, self._frame_time = number, now
        self.statistics.frames += 1
        self.statistics.complete += bool(mask.all())
        self.deliver(
            CompletedFrame(
                node=self.id,
                number=number,
                frame=pixels,
                mask=mask,
                readings=self.readings,
                sound=self.sound,
                statistics=copy(self.statistics),
                nbytes=nbytes,
                energy=energy,
                time=now,
            )
        )

    def _energy(self, nbytes: int, payload: int, overhead: int, now: float) -> FrameEnergy:
        """Modelled cost since the last frame; the few bytes of readings and sound are not counted."""
        period = now - self._frame_time
        return self.energy.frame(nbytes, period if np.isfinite(period) else PERIOD, payload, overhead)

    def _late(self, number: int) -> bool:
        return self._closed is not None and -LATE <= _ahead(number, self._closed) <= 0

    def _in_order(self) -> list[int]:
        """Numbers of the open frames, the oldest first; they are of one stretch."""
        numbers = list(self._open)
        return sorted(numbers, key=lambda number: _ahead(number, numbers[0]))

    def _following(self) -> int:
        return 0 if self._closed is None else (self._closed + 1) % NUMBERS


def _ahead(number: int, other: int) -> int:
    """How many frames `number` lies ahead of `other` on the circle; negative if behind."""
    return (number - other + NUMBERS // 2) % NUMBERS - NUMBERS // 2
