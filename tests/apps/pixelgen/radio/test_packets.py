from __future__ import annotations

from binascii import crc_hqx
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modicum.apps.pixelgen.modes import MODES, QVGA
from modicum.apps.pixelgen.radio.packets import (
    HEADER_BYTES,
    TAG_BYTES,
    Kind,
    Packet,
    decode,
    encode,
    payload_size,
    sender,
)
from modicum.errors import BadPacket, BadTag

KEY = b"secret"
PACKET = Packet(7, Kind.FRAME, 513, 300, bytes(range(236)), QVGA, True, False)

packets = st.builds(
    Packet,
    node=st.integers(0, 0xFFFF),
    kind=st.sampled_from(Kind),
    frame=st.integers(0, 0xFFFF),
    seq=st.integers(0, 0xFFFF),
    payload=st.binary(max_size=228),
    mode=st.sampled_from(MODES),
    interleaved=st.booleans(),
    parity=st.booleans(),
)


def test_the_bytes_of_a_packet() -> None:
    datagram = encode(PACKET)
    head = bytes([7, 0, 0x10, 0b0100, 1, 2, 44, 1])  # node, version 1 and type 0, flags, frame 513, seq 300
    assert datagram[:8] == head
    assert datagram[8:10] == crc_hqx(head + PACKET.payload, 0xFFFF).to_bytes(2, "little")
    assert datagram[10:] == PACKET.payload
    assert len(datagram) - 2 == 244  # what goes over the air
    assert HEADER_BYTES == 8


def test_the_checksum_is_the_one_of_the_standard() -> None:
    assert crc_hqx(b"123456789", 0xFFFF) == 0x29B1  # the check value of CRC-16-CCITT with start 0xFFFF


@given(packets, st.sampled_from([None, KEY]))
def test_round_trip(packet: Packet, key: bytes | None) -> None:
    datagram = encode(packet, key)
    assert decode(datagram, key) == packet
    assert sender(datagram) == packet.node
    assert len(datagram) == 10 + len(packet.payload) + (TAG_BYTES if key else 0)


@pytest.mark.parametrize("key", [None, KEY])
def test_any_flipped_bit_is_noticed(key: bytes | None) -> None:
    datagram = encode(replace(PACKET, payload=PACKET.payload[: payload_size(key)]), key)
    for bit in range(8 * len(datagram)):
        changed = bytearray(datagram)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadPacket):
            decode(bytes(changed), key)


def test_a_burst_of_sixteen_bits_is_noticed() -> None:
    datagram, random = encode(PACKET), np.random.default_rng(0)
    for start in random.integers(0, 8 * len(datagram) - 16, 200):
        pattern = int(random.integers(1, 1 << 16))
        changed = int.from_bytes(datagram, "big") ^ pattern << int(start)
        with pytest.raises(BadPacket):
            decode(changed.to_bytes(len(datagram), "big"))


def test_tags() -> None:
    assert payload_size() == 236
    assert payload_size(KEY) == 228
    signed = encode(replace(PACKET, payload=b"x"), KEY)
    with pytest.raises(BadTag):
        decode(signed, b"another")
    with pytest.raises(BadTag):
        decode(encode(PACKET), KEY)  # without any
    with pytest.raises(BadPacket):
        decode(signed)  # the tag is taken for payload, and the checksum does not cover it


def test_versions_types_and_flags_from_the_future() -> None:
    plain = encode(PACKET)
    for place, value in ((2, 0x20), (2, 0x13), (3, 0x10)):
        changed = bytearray(plain)
        changed[place] = value
        crc = crc_hqx(bytes(changed[:8] + changed[10:]), 0xFFFF)
        changed[8:10] = crc.to_bytes(2, "little")
        with pytest.raises(BadPacket, match="unknown"):
            decode(bytes(changed))


@given(st.binary(max_size=300), st.sampled_from([None, KEY]))
def test_anything_else_is_refused(junk: bytes, key: bytes | None) -> None:
    if crc_hqx(junk[:8] + junk[10:], 0xFFFF) != int.from_bytes(junk[8:10], "little"):
        with pytest.raises(BadPacket):
            decode(junk, key)


def test_too_long_and_too_short() -> None:
    long = encode(replace(PACKET, payload=bytes(237)))
    for datagram in (long, b"", b"1", encode(PACKET)[:9]):
        with pytest.raises(BadPacket):
            decode(datagram)
    with pytest.raises(BadPacket):
        sender(b"1")
