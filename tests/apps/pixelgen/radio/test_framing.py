from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from modicum.apps.pixelgen.modes import MODES, QQVGA4, QVGA, QVGA4, Mode, mode
from modicum.apps.pixelgen.radio.columns import ColumnFrame, column_packets
from modicum.apps.pixelgen.radio.framing import Framing, Layout, group, group_seq
from modicum.apps.pixelgen.radio.packets import Packet, decode
from modicum.errors import BadPacket, UnknownName

Frame = NDArray[np.uint8]


def test_the_sizes_of_the_sensor() -> None:
    assert (QVGA.width, QVGA.height, QVGA.nbytes) == (324, 244, 79_056)
    assert [m.nbytes for m in MODES] == [79_056, 19_764, 39_528, 9_882]
    assert mode("qqvga4") is QQVGA4
    with pytest.raises(UnknownName, match="vga"):
        mode("vga")


@pytest.mark.parametrize("one", MODES, ids=lambda m: m.name)
def test_packing(one: Mode, frame: Frame) -> None:
    pixels = frame[: one.height, : one.width]
    data = one.pack(np.ascontiguousarray(pixels))
    assert data.shape == (one.nbytes,)
    back = one.unpack(data)
    assert np.array_equal(back, pixels if one.bits == 8 else (pixels >> 4) * 17)
    assert np.array_equal(one.unpack(one.pack(back)), back)
    known = np.zeros(one.nbytes, bool)
    known[1] = True
    assert np.flatnonzero(one.mask(known)).tolist() == ([1] if one.bits == 8 else [2, 3])


def test_four_bits_keep_the_order_of_pixels() -> None:
    frame = np.zeros(QVGA4.shape, np.uint8)
    frame[0, :2] = 0xA7, 0x31
    assert QVGA4.pack(frame)[0] == 0xA3


@given(st.integers(1, 3000), st.integers(1, 236), st.booleans())
def test_every_byte_is_in_one_packet(nbytes: int, size: int, interleaved: bool) -> None:
    layout = Layout(nbytes, size, interleaved)
    data = np.random.default_rng(nbytes).integers(0, 256, nbytes, dtype=np.uint8)
    rows, lengths = layout.deal(data), layout.lengths()
    assert rows.shape == (layout.count, layout.width)
    assert layout.count == -(-nbytes // size)
    assert lengths.sum() == nbytes
    assert lengths.min() > 0
    assert lengths.max() == layout.width <= size
    assert np.array_equal(layout.collect(rows), data)
    for seq in {0, layout.count // 2, layout.count - 1}:
        expected = data[seq :: layout.count] if interleaved else data[seq * size : (seq + 1) * size]
        assert np.array_equal(rows[seq, : lengths[seq]], expected)
        got = np.zeros(layout.count, bool)
        got[seq] = True
        assert layout.known(got).sum() == lengths[seq]


@pytest.mark.parametrize(("key", "count"), [(None, 335), (b"k", 347)])
@pytest.mark.parametrize("interleave", [False, True])
def test_packets_of_a_frame(frame: Frame, key: bytes | None, count: int, interleave: bool) -> None:
    sent = Framing(interleave=interleave).packets(frame, 3, 65_537, key)
    assert len(sent) == count
    found = [decode(datagram, key) for datagram in sent]
    assert [p.seq for p in found] == list(range(count))
    assert {(p.node, p.frame, p.interleaved, p.parity) for p in found} == {(3, 1, interleave, False)}
    assert sum(len(p.payload) for p in found) == 79_056
    assert max(len(datagram) - 2 for datagram in sent) <= 244


def _groups(packets: list[Packet]) -> list[tuple[Packet, list[Packet]]]:
    return [(p, [d for d in packets if not d.parity][group(p.seq)]) for p in packets if p.parity]


@pytest.mark.parametrize("size", [2, 8, 10, 127])
@pytest.mark.parametrize("interleave", [False, True])
def test_parity_is_the_xor_of_its_group(frame: Frame, size: int, interleave: bool) -> None:
    packets = [decode(d) for d in Framing(parity=size, interleave=interleave).packets(frame, 1, 0)]
    groups = _groups(packets)
    assert len(groups) == -(-335 // size)
    assert sum(len(members) for _, members in groups) == 335
    for parity, members in groups[:2] + groups[-1:]:
        width = len(parity.payload)
        total = np.zeros(width, np.uint8)
        for member in members:
            total ^= np.frombuffer(member.payload.ljust(width, b"\0"), np.uint8)
        assert total.tobytes() == parity.payload
        assert packets.index(parity) == packets.index(members[-1]) + 1  # sent right behind its group


def test_numbers_of_groups() -> None:
    assert group(group_seq(320, 16)) == slice(320, 336)
    assert group_seq(511, 127) <= 0xFFFF


@pytest.mark.parametrize("size", [1, -1, 128])
def test_groups_that_make_no_sense(size: int) -> None:
    with pytest.raises(ValidationError):
        Framing(parity=size)


def test_columns(frame: Frame) -> None:
    sent = column_packets(frame, 9)
    assert len(sent) == 324
    assert {len(datagram) - 2 for datagram in sent} == {244}
    together = ColumnFrame()
    for _ in range(2):
        *early, last = [together.add(datagram) for datagram in sent]
        assert not any(found is not None for found in early)
        assert np.array_equal(last, frame)
    with pytest.raises(BadPacket):
        together.add(sent[0][:-1])
