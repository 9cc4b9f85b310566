"""One frame on its way from packets to a picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modicum.apps.pixelgen.modes import Bytes
from modicum.apps.pixelgen.radio.framing import Layout, group
from modicum.apps.pixelgen.radio.packets import Packet
from modicum.errors import BadPacket

_STRANGE = "Check that no two nodes have the same id."


class Assembly:
    """Packets of one frame, in any order, some twice, some never.

    Args:
        first: any packet of the frame: mode and interleaving of the others must be the same.
        size: largest payload.

    Attributes:
        got: bool `[N]`, packets that are here or were recovered.
        parity: payloads of parity packets, by the first packet of their group.
        duplicates: packets that were here already.
        recovered: packets that parity brought back.
        received: bytes of the packets that came, parity included, headers and duplicates not.
    """

    def __init__(self, first: Packet, size: int) -> None:
        self.mode, self.interleaved = first.mode, first.interleaved
        self.layout = Layout(first.mode.nbytes, size, first.interleaved)
        self.rows = np.zeros((self.layout.count, self.layout.width), np.uint8)
        self.got = np.zeros(self.layout.count, bool)
        self.parity: dict[int, bytes] = {}
        self.duplicates = self.recovered = self.received = 0
        self._lengths = self.layout.lengths().tolist()
        self._missing, self._group = self.layout.count, 0

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return self._missing == 0

    @property
    def sent(self) -> int:
        """Payload bytes that the node must have sent, parity included: what its energy was spent on."""
        groups = -(-self.layout.count // self._group) if self._group else 0
        return self.layout.nbytes + groups * self.layout.width

    def add(self, packet: Packet) -> None:
        """Take one more packet.

        Raises:
            BadPacket: it does not fit the others.
        """
        if (packet.mode, packet.interleaved) != (self.mode, self.interleaved):
            raise BadPacket(f"Frame {packet.frame} changes its mode on the way.", _STRANGE)
        if packet.parity:
            self._add_parity(packet)
        else:
            self._add_data(packet)

    def picture(self) -> tuple[Bytes, NDArray[np.bool_]]:
        """Pixels uint8 `[H, W]` and which of them are known, bool `[H, W]`."""
        pixels = self.mode.unpack(self.layout.collect(self.rows))
        return pixels, self.mode.mask(self.layout.known(self.got))

    def _add_data(self, packet: Packet) -> None:
        seq = packet.seq
        if seq >= self.layout.count or len(packet.payload) != self._lengths[seq]:
            raise BadPacket(f"Packet {seq} of frame {packet.frame} does not fit its mode.", _STRANGE)
        if self.got[seq]:
            self.duplicates += 1
            return
        self.received += len(packet.payload)
        self._place(seq, np.frombuffer(packet.payload, np.uint8))
        if self._group:
            self._recover(seq - seq % self._group)

    def _add_parity(self, packet: Packet) -> None:
        covered = group(packet.seq)
        size = covered.stop - covered.start
        fits = size >= 2 and covered.start % size == 0 and covered.start < self.layout.count
        if not fits or self._group not in (0, size) or len(packet.payload) != self.layout.width:
            raise BadPacket(f"A parity packet of frame {packet.frame} does not fit its mode.", _STRANGE)
        if covered.start in self.parity:
            self.duplicates += 1
            return
        self._group = size
        self.received += len(packet.payload)
        self.parity[covered.start] = packet.payload
        self._recover(covered.start)

    def _recover(self, first: int) -> None:
        """Bring back the only missing packet of a group."""
        members = slice(first, first + self._group)
        missing = np.flatnonzero(~self.got[members])
        if len(missing) != 1 or first not in self.parity:
            return
        # The missing row is still zero, so it may take part.
        row = np.bitwise_xor.reduce(self.rows[members]) ^ np.frombuffer(self.parity[first], np.uint8)
        seq = first + int(missing[0])
        self._place(seq, row[: self._lengths[seq]])
        self.recovered += 1

    def _place(self, seq: int, payload: Bytes) -> None:
        self.rows[seq, : len(payload)] = payload
        self.got[seq] = True
        self._missing -= 1
