from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from modicum.apps.pixelgen.energy import EnergyModel
from modicum.apps.pixelgen.gateway import CompletedFrame, Gateway, KnownNode, Subscription
from modicum.apps.pixelgen.modes import MODES, QQVGA4, QVGA, Mode
from modicum.apps.pixelgen.radio.channel import Channel
from modicum.apps.pixelgen.radio.columns import column_packets
from modicum.apps.pixelgen.radio.framing import Framing, group_seq
from modicum.apps.pixelgen.radio.packets import Kind, Packet, decode, encode
from modicum.apps.pixelgen.radio.serial_text import encode_frame, encode_readings
from modicum.apps.pixelgen.radio.telemetry import pack_readings, pack_sound
from modicum.apps.pixelgen.readings import Readings, Sound
from modicum.errors import InvalidSetting, UnknownName

Frame = NDArray[np.uint8]
SMALL = Framing(mode=QQVGA4)  # 42 packets
KEY = b"secret"


def small(seed: int = 0) -> Frame:
    """A frame that survives four bits."""
    return np.random.default_rng(seed).integers(0, 16, QQVGA4.shape, dtype=np.uint8) * np.uint8(17)


def listen(clock: Any, **nodes: Any) -> tuple[Gateway, Subscription]:
    """A gateway with node 1, and one who hears all of it."""
    gateway = Gateway({1: KnownNode(**nodes), 2: KnownNode()}, clock=clock)
    return gateway, gateway.subscribe(1000)


def deliver(gateway: Gateway, packets: list[bytes]) -> None:
    for packet in packets:
        gateway.receive(packet)


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
@pytest.mark.parametrize("interleave", [False, True])
def test_bit_exact_in_spite_of_reordering_and_duplicates(
    frame: Frame, clock: Any, mode: Mode, interleave: bool
) -> None:
    gateway, heard = listen(clock)
    pixels = mode.unpack(mode.pack(np.ascontiguousarray(frame[: mode.height, : mode.width])))
    sent = Framing(mode=mode, interleave=interleave).packets(pixels, 1, 5)
    air = Channel(duplicates=0.3, jitter=200).open(0)
    deliver(gateway, air.carry(sent))
    (found,) = heard.take()
    assert np.array_equal(found.frame, pixels)
    assert np.array_equal(found.concealed, pixels)
    assert found.mask.all()
    assert (found.node, found.number, found.nbytes) == (1, 5, mode.nbytes)
    counts = gateway.statistics()[1]
    assert counts.packets == len(sent) + counts.duplicates + counts.late
    assert (counts.frames, counts.complete, counts.holes, counts.damaged) == (1, 1, 0, 0)


def test_packets_are_counted(frame: Frame, clock: Any) -> None:
    gateway, heard = listen(clock)
    deliver(gateway, Framing().packets(frame, 1, 0))
    assert gateway.statistics()[1].packets == 335
    columns, heard = listen(clock, columns=True)
    deliver(columns, column_packets(frame, 1))
    assert columns.statistics()[1].packets == 324
    assert np.array_equal(heard.take()[0].frame, frame)


def test_lost_packets_leave_holes_and_nothing_else(frame: Frame, clock: Any) -> None:
    gateway, heard = listen(clock)
    sent = Framing(interleave=True).packets(frame, 1, 0)
    deliver(gateway, [p for i, p in enumerate(sent) if i not in (3, 100, 334)])
    gateway.expire()
    assert heard.take() == []  # there is still time
    clock.now += 1.01
    gateway.expire()
    (found,) = heard.take()
    missing = np.zeros(QVGA.nbytes, bool)
    for seq in (3, 100, 334):
        missing[seq::335] = True
    assert np.array_equal(found.mask.reshape(-1), ~missing)
    assert np.array_equal(found.frame, frame * found.mask)
    assert gateway.statistics()[1].holes == 3
    deliver(gateway, sent[3:4])
    assert gateway.statistics()[1].late == 1
    gateway.expire()
    assert heard.take() == []


@pytest.mark.parametrize("size", [2, 7, 64])
@pytest.mark.parametrize("interleave", [False, True])
@pytest.mark.parametrize("parity_first", [False, True])
def test_parity_brings_back_one_loss_per_group(
    clock: Any, size: int, interleave: bool, parity_first: bool
) -> None:
    gateway, heard = listen(clock)
    pixels = small()
    framing = SMALL.model_copy(update={"parity": size, "interleave": interleave})
    packets = [(p, decode(p)) for p in framing.packets(pixels, 1, 0)]
    lost = {min(first + size // 2, 41) for first in range(0, 42, size)}  # one of every group
    arrived = [p for p, d in packets if d.parity or d.seq not in lost]
    if parity_first:
        arrived.sort(key=lambda p: not decode(p).parity)
    deliver(gateway, arrived)
    (found,) = heard.take()
    assert np.array_equal(found.frame, pixels)
    assert gateway.statistics()[1].recovered == len(lost) == -(-42 // size)


def test_two_losses_in_a_group_stay(clock: Any) -> None:
    gateway, heard = listen(clock)
    framing = SMALL.model_copy(update={"parity": 6})
    sent = framing.packets(small(), 1, 0)
    deliver(gateway, sent[2:])
    clock.now += 2
    gateway.expire()
    assert not heard.take()[0].mask.all()
    assert gateway.statistics()[1].holes == 2


def test_readings_and_sound_come_with_the_frame(clock: Any) -> None:
    gateway, heard = listen(clock)
    sound = Sound(61.5, 440.0, np.arange(32, dtype=np.uint8))
    notes = [
        Packet(1, Kind.AUDIO, 0, 0, pack_sound(sound)),
        Packet(1, Kind.SENSORS, 0, 0, pack_readings(Readings(20.0, 50.0, 100_000.0))),
    ]
    deliver(gateway, [encode(note) for note in notes] + SMALL.packets(small(), 1, 0))
    deliver(gateway, SMALL.packets(small(), 2, 0))
    mine, other = heard.take()
    assert mine.readings == Readings(20.0, 50.0, 100_000.0, None, 61.5, 440.0)
    assert mine.sound is not None
    assert mine.sound.mel.tolist() == list(range(32))
    assert other.readings == Readings()
    assert other.sound is None


def test_a_serial_line(frame: Frame, clock: Any) -> None:
    gateway, heard = listen(clock)
    text = encode_frame(frame) + encode_readings(Readings(lux=300.0))
    for start in range(0, 2 * len(text), 5000):
        gateway.text(1, (text + text)[start : start + 5000])
    first, second = heard.take()
    assert np.array_equal(first.frame, np.fliplr(frame))
    assert (first.readings.lux, second.readings.lux) == (None, 300.0)
    assert (first.number, second.number, first.energy) == (0, 1, None)
    with pytest.raises(UnknownName, match="'9'"):
        gateway.text(9, b"")


def test_columns_after_a_loss(frame: Frame, clock: Any) -> None:
    gateway, heard = listen(clock, columns=True)
    sent = column_packets(frame, 1)
    deliver(gateway, sent[:100] + sent[101:])
    assert heard.take() == []
    clock.now += 1.5  # the pause after which a new frame begins
    deliver(gateway, sent)
    (found,) = heard.take()
    assert np.array_equal(found.frame, frame)
    with pytest.raises(InvalidSetting, match="tag"):
        KnownNode(KEY, columns=True)


def test_keys(clock: Any) -> None:
    gateway, heard = listen(clock, key=KEY)
    deliver(gateway, SMALL.packets(small(), 1, 0, KEY))
    assert len(heard.take()) == 1
    deliver(gateway, SMALL.packets(small(), 1, 1, b"another"))
    deliver(gateway, SMALL.packets(small(), 1, 2))
    deliver(gateway, SMALL.packets(small(), 3, 3, KEY))
    assert heard.take() == []
    counts = gateway.statistics()[1]
    assert counts.refused == 44 + 42  # 228 bytes per packet with a key, 236 without
    assert counts.frames == 1
    assert gateway.refused == 44
    gateway.receive(b"")
    assert gateway.refused == 45


def test_frames_come_in_order(clock: Any) -> None:
    gateway, heard = listen(clock)
    first, second = SMALL.packets(small(1), 1, 65_535), SMALL.packets(small(2), 1, 0)
    mixed = [packet for pair in zip(first[:-1], second, strict=False) for packet in pair]
    deliver(gateway, [*mixed, second[-1], first[-1]])
    assert [(f.number, f.mask.all()) for f in heard.take()] == [(65_535, False), (0, True)]
    assert gateway.statistics()[1].late == 1


def test_newer_frames_push_out_the_oldest(clock: Any) -> None:
    gateway, heard = listen(clock)
    for number in (3, 2, 4, 5):  # 3 and 2 are open when 4 begins
        gateway.receive(SMALL.packets(small(), 1, number)[0])
    assert [f.number for f in heard.take()] == [2, 3]
    clock.now += 2
    gateway.expire()
    assert [f.number for f in heard.take()] == [4, 5]


@pytest.mark.parametrize("number", [0, 900, 40_000])
def test_a_node_that_was_restarted(clock: Any, number: int) -> None:
    gateway, heard = listen(clock)
    deliver(gateway, SMALL.packets(small(1), 1, 1000))
    gateway.receive(SMALL.packets(small(1), 1, 1001)[0])  # cut off in the middle of a frame
    deliver(gateway, SMALL.packets(small(2), 1, number) + SMALL.packets(small(3), 1, number + 1))
    assert [f.number for f in heard.take()] == [1000, 1001, number, number + 1]
    deliver(gateway, SMALL.packets(small(2), 1, number))
    clock.now += 2
    gateway.expire()
    assert heard.take() == []


def test_a_gateway_that_was_restarted(clock: Any) -> None:
    old, _ = listen(clock)
    frames = [SMALL.packets(small(n), 1, 700 + n) for n in range(3)]
    deliver(old, frames[0] + frames[1][:20])
    gateway, heard = listen(clock)
    deliver(gateway, frames[1][20:] + frames[2])
    cut, whole = heard.take()
    assert (cut.number, whole.number) == (701, 702)
    assert np.array_equal(whole.frame, small(2))
    assert np.array_equal(cut.frame, small(1) * cut.mask)
    assert 0 < cut.mask.mean() < 1


def test_packets_that_do_not_fit(clock: Any) -> None:
    gateway, heard = listen(clock)
    good = decode(SMALL.packets(small(), 1, 0)[0])
    bad = [
        replace(good, seq=42),
        replace(good, payload=good.payload[:-1]),
        replace(good, payload=b""),
        replace(good, parity=True, seq=group_seq(0, 1)),
        replace(good, parity=True, seq=group_seq(3, 2)),
        replace(good, parity=True, seq=group_seq(42, 2)),
        replace(good, parity=True, seq=group_seq(0, 2), payload=b"short"),
        replace(good, kind=Kind.SENSORS),
        replace(good, kind=Kind.AUDIO),
    ]
    deliver(gateway, [encode(p) for p in bad])
    clock.now += 2
    gateway.expire()
    assert heard.take() == []  # a bad first packet opens nothing
    other = [replace(good, interleaved=True), replace(good, mode=QVGA)]
    another_group = [replace(good, parity=True, seq=group_seq(0, k)) for k in (2, 3)]
    deliver(gateway, [encode(p) for p in [good, *other, *another_group]])
    assert gateway.statistics()[1].damaged == len(bad) + 3


def test_the_energy_of_a_frame(frame: Frame, clock: Any) -> None:
    gateway, heard = listen(clock, key=KEY)
    for number in range(2):
        deliver(gateway, Framing(parity=10).packets(frame, 1, number, KEY))
        clock.now += 30
    first, second = (f.energy for f in heard.take())
    assert first is not None
    assert second is not None
    assert first.basis == "model"
    assert first.packets == 347 + 35
    assert (first.period, second.period) == (12.0, 30.0)
    sent = 79_056 + 35 * 228
    assert second.total == pytest.approx(EnergyModel().frame(sent, 30.0, 228, 16).total, rel=1e-12)


junk = st.one_of(
    st.binary(max_size=260),
    st.builds(
        lambda node, kind, frame, seq, size, mode, dealt, parity: encode(
            Packet(node, kind, frame, seq, bytes(size), mode, dealt, parity)
        ),
        st.just(1),
        st.sampled_from(Kind),
        st.sampled_from([0, 1, 2, 40_000, 65_535]),
        st.one_of(st.integers(0, 45), st.integers(0, 0xFFFF)),
        st.sampled_from([0, 12, 36, 206, 235, 236]),
        st.sampled_from(MODES),
        st.booleans(),
        st.booleans(),
    ),
)


@given(st.lists(junk, max_size=60), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_no_input_breaks_the_gateway_or_reaches_another_stream(stream: list[bytes], tick: int) -> None:
    now = [0.0]
    gateway = Gateway({1: KnownNode(), 2: KnownNode(KEY)}, clock=lambda: now[0])
    heard = gateway.subscribe(10_000)
    mine = SMALL.packets(small(7), 2, 9, KEY)
    half = len(mine) // 2
    deliver(gateway, mine[:half])
    for datagram in stream:
        gateway.receive(datagram)
        gateway.text(1, datagram)
        now[0] += tick / 100
    gateway.receive(b"\x02\x00" + bytes(240))  # in the name of node 2
    deliver(gateway, mine[half:])
    found = heard.take()
    theirs = [f for f in found if f.node == 2]
    assert len(theirs) == 1
    assert np.array_equal(theirs[0].frame, small(7))
    assert theirs[0].readings == Readings()
    for other in found:
        assert other.frame.shape == other.mask.shape
        assert not other.frame[~other.mask].any()
    assert len(gateway._streams[1]._open) <= 2


def test_slow_readers_miss_the_oldest(clock: Any) -> None:
    gateway, everything = listen(clock)
    slow = gateway.subscribe(2)
    for number in range(5):
        deliver(gateway, SMALL.packets(small(number), 1, number))
    assert [f.number for f in slow.take()] == [3, 4]
    assert (slow.dropped, everything.dropped) == (3, 0)
    assert len(everything.take()) == 5


def test_subscriptions_are_iterators(clock: Any) -> None:
    gateway, _ = listen(clock)

    async def read(frames: Subscription) -> list[CompletedFrame]:
        return [frame async for frame in frames]

    async def main() -> list[CompletedFrame]:
        with gateway.subscribe() as frames:
            reader = asyncio.create_task(read(frames))
            for number in range(3):
                deliver(gateway, SMALL.packets(small(), 1, number))
                await asyncio.sleep(0)
            frames.close()
            found = await asyncio.wait_for(reader, 5)
        assert frames not in gateway._subscriptions
        return found

    found = asyncio.run(main())
    assert [f.number for f in found] == [0, 1, 2]
    assert found[0].statistics.frames == 1  # as of then
