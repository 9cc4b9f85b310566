"""A frame dealt out over packets, and put together again.

    in a row       packet 0 = bytes 0 1 2 ...      a lost packet is a black bar
    interleaved    packet s = bytes s s+N s+2N ... a lost packet is scattered pixels, easy to fill in from neighbours
    parity         after every k packets their XOR: one loss per group is recovered exactly

Interleaving changes where the holes are, not how many. Legend: M bytes per frame, P bytes per payload, N packets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from modicum.apps.pixelgen.modes import QVGA, Bytes, Mode
from modicum.apps.pixelgen.radio.packets import Kind, Packet, encode, payload_size

LARGEST_GROUP = 127
FIRST_BITS = 9
"""A parity packet's seq: the group's size in the upper 7 bits, its first packet in the lower 9."""


@dataclass(frozen=True)
class Layout:
    """Which packet carries which byte.

    Attributes:
        nbytes: M.
        size: P.
        interleaved: dealt out instead of cut in a row.
    """

    nbytes: int
    size: int
    interleaved: bool = False

    @property
    def count(self) -> int:
        """N, without parity packets."""
        return -(-self.nbytes // self.size)

    @property
    def width(self) -> int:
        """Bytes of the longest payload; also that of a parity packet."""
        return -(-self.nbytes // self.count) if self.interleaved else min(self.size, self.nbytes)

    def lengths(self) -> NDArray[np.int64]:
        """Bytes of every payload, int64 `[N]`."""
        seq = np.arange(self.count)
        if self.interleaved:
            return -(-(self.nbytes - seq) // self.count)
        return np.minimum(self.size, self.nbytes - self.size * seq)

    def deal(self, data: Bytes) -> Bytes:
        """Bytes uint8 `[M]` to rows uint8 `[N, width]`, padded with zeros."""
        rows = np.zeros(self.count * self.width, np.uint8)
        rows[: self.nbytes] = data
        return rows.reshape(self.width, -1).T if self.interleaved else rows.reshape(-1, self.width)

    def collect(self, rows: NDArray) -> NDArray:
        """The inverse of `deal`, for any dtype: `[N, width]` to `[M]`."""
        return (rows.T if self.interleaved else rows).reshape(-1)[: self.nbytes]

    def known(self, got: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which bytes `[M]` have arrived if these packets `[N]` have."""
        return self.collect(np.broadcast_to(got[:, None], (self.count, self.width)))


class Framing(BaseModel):
    """How a node sends its frames."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    mode: Mode = Field(QVGA, description="size and depth of the picture")
    interleave: bool = Field(False, description="deal the bytes out over all packets")
    parity: int = Field(0, ge=0, le=LARGEST_GROUP, description="an XOR packet after so many; 0 sends none")

    @field_validator("parity")
    @classmethod
    def _group(cls, value: int) -> int:
        if value == 1:
            raise ValueError("a group of one would send every packet twice; choose 0 or 2 and more")
        return value

    def layout(self, key: bytes | None = None) -> Layout:
        """Which packet carries which byte, for a node with that key."""
        return Layout(self.mode.nbytes, payload_size(key), self.interleave)

    def packets(self, frame: Bytes, node: int, number: int, key: bytes | None = None) -> list[bytes]:
        """The datagrams of one frame, in the order in which they are sent.

        Args:
            frame: uint8 `[H, W]` in the size of the mode.
            node: id of the sender.
            number: of the frame; taken modulo 65536.
            key: secret of the node, if it has one.
        """
        layout = self.layout(key)
        rows = layout.deal(self.mode.pack(frame))
        sums = np.bitwise_xor.reduceat(rows, range(0, layout.count, self.parity)) if self.parity else rows[:0]

        def datagram(seq: int, payload: bytes, parity: bool = False) -> bytes:
            whole = (node, Kind.FRAME, number & 0xFFFF, seq, payload, self.mode, self.interleave, parity)
            return encode(Packet(*whole), key)

        sent = [
            datagram(seq, row.tobytes()[:length])
            for seq, (row, length) in enumerate(zip(rows, layout.lengths(), strict=True))
        ]
        for group in reversed(range(len(sums))):  # from behind, so that earlier places stay as they are
            first = group * self.parity
            extra = datagram(group_seq(first, self.parity), sums[group].tobytes(), parity=True)
            sent.insert(min(first + self.parity, layout.count), extra)
        return sent


def group_seq(first: int, size: int) -> int:
    """The seq of the parity packet of a group."""
    return size << FIRST_BITS | first


def group(seq: int) -> slice:
    """The packets that a parity packet covers; may reach behind the last one."""
    first = seq & (1 << FIRST_BITS) - 1
    return slice(first, first + (seq >> FIRST_BITS))
