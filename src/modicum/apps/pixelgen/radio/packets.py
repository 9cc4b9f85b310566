"""Packets: what a node sends, and what a gateway believes.

    node id  | type flags frame seq  crc | payload              | tag
    2 bytes  |  1     1     2    2    2  | up to 236            | 8, with a key
      link   |           header          |
             '------ one BLE notification, 244 bytes at most ---------'

All numbers are little-endian. The upper half of the type byte is the version. The checksum is CRC-16-CCITT (start
0xFFFF) over node id, header and payload. The node id does not go over the air: on a radio link the connection names
the sender; on a datagram link the id stands in front, and the checksum covers it so that a flipped bit cannot move a
packet into another node's stream. With a key the last 8 bytes are an HMAC-SHA256 over all before them and the
payload shrinks to 228. The tag does not stop a listener from repeating an old packet word for word.

Flags: bits 0-1 the mode, bit 2 interleaved, bit 3 parity.
"""

from __future__ import annotations

import hmac
import struct
from binascii import crc_hqx
from dataclasses import dataclass
from enum import IntEnum

from modicum.apps.pixelgen.modes import MODES, Mode
from modicum.errors import BadPacket, BadTag

VERSION = 1
ATTRIBUTE_BYTES = 244
"""What one BLE notification carries."""
TAG_BYTES = 8
INTERLEAVED, PARITY = 0b100, 0b1000
MAX_NODE = 0xFFFF

_LINK = struct.Struct("<H")
_HEADER = struct.Struct("<BBHHH")
HEADER_BYTES = _HEADER.size
_BEFORE_CRC = struct.Struct("<BBHH")


class Kind(IntEnum):
    """What a packet carries."""

    FRAME = 0
    SENSORS = 1
    AUDIO = 2


_KINDS = frozenset(Kind)


@dataclass(frozen=True)
class Packet:
    """A packet without what protects it.

    Attributes:
        node: who sent it, 0 to 65535.
        kind: what it carries.
        frame: number of the frame, modulo 65536.
        seq: place in the frame; of a parity packet, `group_seq` of its group.
        payload: at most `payload_size` bytes.
        mode: of the frame.
        interleaved: bytes are dealt out over the packets instead of cut in a row.
        parity: the payload is the XOR of a group.
    """

    node: int
    kind: Kind
    frame: int
    seq: int
    payload: bytes
    mode: Mode = MODES[0]
    interleaved: bool = False
    parity: bool = False

    @property
    def flags(self) -> int:
        """The flags byte."""
        return MODES.index(self.mode) | INTERLEAVED * self.interleaved | PARITY * self.parity


def payload_size(key: bytes | None = None) -> int:
    """Largest payload: 236 bytes, 228 with a key."""
    return ATTRIBUTE_BYTES - HEADER_BYTES - (TAG_BYTES if key else 0)


def encode(packet: Packet, key: bytes | None = None) -> bytes:
    """The packet as a datagram.

    Args:
        packet: what to send.
        key: secret of the node, if it has one.
    """
    link = _LINK.pack(packet.node)
    head = _BEFORE_CRC.pack(VERSION << 4 | packet.kind, packet.flags, packet.frame, packet.seq)
    crc = crc_hqx(link + head + packet.payload, 0xFFFF)
    datagram = link + head + _LINK.pack(crc) + packet.payload
    return datagram + tag(datagram, key) if key else datagram


def decode(datagram: bytes, key: bytes | None = None) -> Packet:
    """The packet of a datagram.

    Args:
        datagram: as `encode` made it, or anything else.
        key: secret of the node, if it has one.

    Raises:
        BadPacket: it is not what a node with that key sends.
    """
    if key:
        datagram = untagged(datagram, key)
    if not _LINK.size + HEADER_BYTES <= len(datagram) <= _LINK.size + ATTRIBUTE_BYTES:
        raise BadPacket(f"A packet has {len(datagram)} bytes.", "Check the node's version of the protocol.")
    kind, flags, frame, seq, crc = _HEADER.unpack_from(datagram, _LINK.size)
    payload = datagram[_LINK.size + HEADER_BYTES :]
    covered = datagram[: _LINK.size + _BEFORE_CRC.size] + payload
    if crc_hqx(covered, 0xFFFF) != crc:
        raise BadPacket("The checksum of a packet is wrong.", "A few of these are normal on a radio link.")
    if kind >> 4 != VERSION or kind & 0xF not in _KINDS or flags >> 4:
        raise BadPacket(f"Packet type {kind:#04x}, flags {flags:#04x} is unknown.", "Update the gateway.")
    return Packet(
        sender(datagram),
        Kind(kind & 0xF),
        frame,
        seq,
        payload,
        MODES[flags & 3],
        bool(flags & INTERLEAVED),
        bool(flags & PARITY),
    )


def sender(datagram: bytes) -> int:
    """The node id that a datagram names.

    Raises:
        BadPacket: it is too short to name one.
    """
    if len(datagram) < _LINK.size:
        raise BadPacket("A packet is too short to name its node.", "Check who sends to this gateway.")
    return _LINK.unpack_from(datagram)[0]


def tag(datagram: bytes, key: bytes) -> bytes:
    """The first 8 bytes of HMAC-SHA256."""
    return hmac.digest(key, datagram, "sha256")[:TAG_BYTES]


def untagged(datagram: bytes, key: bytes) -> bytes:
    """A datagram without its tag.

    Raises:
        BadTag: it is wrong, or there is none.
    """
    body, given = datagram[:-TAG_BYTES], datagram[-TAG_BYTES:]
    if not hmac.compare_digest(tag(body, key), given):
        raise BadTag("The tag of a packet is wrong.", "Give node and gateway the same key.")
    return body
