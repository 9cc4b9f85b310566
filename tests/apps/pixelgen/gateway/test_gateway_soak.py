"""Eight nodes at 2,000 packets per second in all, a fifth of them lost, some late, doubled or damaged.

Ten minutes of the same: benchmarks/pixelgen_gateway.py.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import numpy as np
import pytest

from modicum.apps.pixelgen.gateway import Gateway, KnownNode
from modicum.apps.pixelgen.modes import QVGA
from modicum.apps.pixelgen.radio.channel import Channel
from modicum.apps.pixelgen.radio.framing import Framing

NODES, RATE = 8, 2000
AIR = Channel(loss=0.2, duplicates=0.05, jitter=30, bit_errors=0.01)
SCENES = np.random.default_rng(0).integers(0, 256, (NODES, *QVGA.shape), dtype=np.uint8)
KEYS = [bytes([node + 1]) for node in range(NODES)]


def rounds(count: int) -> Iterator[list[bytes]]:
    """What arrives of one frame of every node, the nodes in turn."""
    framing, airs = Framing(interleave=True, parity=16), [AIR.open(node) for node in range(NODES)]
    for number in range(count):
        sent = [framing.packets(SCENES[node], node, number, KEYS[node]) for node in range(NODES)]
        arrived = [air.carry(packets) for air, packets in zip(airs, sent, strict=True)]
        yield [packet for turn in zip_longest(*arrived) for packet in turn if packet]


def known(clock: Any) -> Gateway:
    return Gateway({node: KnownNode(key) for node, key in enumerate(KEYS)}, clock=clock)


def hear(gateway: Gateway, packets: list[bytes], clock: Any) -> None:
    """Receive at the nominal rate, by the clock of the test."""
    for packet in packets:
        clock.now += 1 / RATE
        gateway.receive(packet)
    gateway.expire()


@pytest.fixture(scope="module")
def storm() -> list[list[bytes]]:
    return list(rounds(8))


def test_faster_than_they_come_and_all_of_it_right(storm: list[list[bytes]], clock: Any) -> None:
    gateway = known(clock)
    unread, read = gateway.subscribe(4), gateway.subscribe(1000)
    begun = time.process_time()
    for packets in storm:
        hear(gateway, packets, clock)
    spent = time.process_time() - begun
    assert sum(map(len, storm)) / spent > RATE
    frames = read.take()
    assert len(frames) >= NODES * (len(storm) - 2)
    for frame in frames:
        assert np.array_equal(frame.frame[frame.mask], SCENES[frame.node][frame.mask])
    assert np.mean([frame.mask.mean() for frame in frames]) == pytest.approx(
        0.797, abs=0.01
    )  # 0.8 * 0.99 + parity
    assert unread.dropped == len(frames) - 4
    counts = gateway.statistics().values()
    assert min(c.refused + c.damaged for c in counts) > 0
    assert sum(c.recovered for c in counts) > 0
    assert sum(c.frames for c in counts) == len(frames)


def test_memory_does_not_grow(storm: list[list[bytes]], clock: Any) -> None:
    gateway = known(clock)
    unread, held = gateway.subscribe(4), []
    tracemalloc.start()
    for packets in storm:
        hear(gateway, packets, clock)
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert unread.dropped > 0
    assert max(held[4:]) <= max(held[:4]) * 1.05
    frame = 2 * QVGA.nbytes  # pixels and mask
    assert max(held) < (4 + NODES * 2 * 2) * frame
