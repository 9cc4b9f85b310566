"""The mode without headers: one image column per packet, 324 packets of 244 bytes for a 324 x 244 frame.

Eleven packets fewer than with headers, and nothing to check: no number, no checksum, no tag. A column is known only by
how many came before it, so this is for a link that delivers everything in order (an acknowledged BLE connection). A
frame of which a packet is missing cannot be put together and is dropped as a whole.
"""

from __future__ import annotations

import numpy as np

from modicum.apps.pixelgen.modes import QVGA, Bytes
from modicum.apps.pixelgen.radio.packets import ATTRIBUTE_BYTES, MAX_NODE
from modicum.errors import BadPacket

ID_BYTES = 2


def column_packets(frame: Bytes, node: int) -> list[bytes]:
    """The 324 datagrams of a frame uint8 `[244, 324]`; the node id stands in front, as the link would name it."""
    return [(node & MAX_NODE).to_bytes(ID_BYTES, "little") + column.tobytes() for column in frame.T]


class ColumnFrame:
    """Columns of one frame, as they come."""

    def __init__(self) -> None:
        self.columns: list[bytes] = []

    def add(self, datagram: bytes) -> Bytes | None:
        """One more column.

        Returns:
            The frame uint8 `[244, 324]` with its last column, else None.

        Raises:
            BadPacket: it is not a column.
        """
        if len(datagram) != ID_BYTES + ATTRIBUTE_BYTES:
            raise BadPacket("A packet is not one column long.", "Send columns of 244 pixels, or headers.")
        self.columns.append(datagram[ID_BYTES:])
        if len(self.columns) < QVGA.width:
            return None
        frame = np.frombuffer(b"".join(self.columns), np.uint8).reshape(QVGA.width, QVGA.height).T
        self.columns = []
        return frame
