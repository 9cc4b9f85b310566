from __future__ import annotations

from itertools import groupby, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modicum.apps.pixelgen.modes import QVGA
from modicum.apps.pixelgen.radio.channel import Air, Channel
from modicum.apps.pixelgen.radio.framing import Layout

FRAMES, PACKETS = 1000, 335
SENT = [index.to_bytes(4, "little") for index in range(500)]
BURSTS = Channel(loss=0.01, bad_loss=0.9, to_bad=0.02, to_good=0.2)


def _holes(interleaved: bool, seed: int, channel: Channel) -> tuple[np.ndarray, np.ndarray]:
    """Share of unknown bytes, and the longest run of them, of 1000 frames each."""
    layout, air = Layout(QVGA.nbytes, 236, interleaved), channel.open(seed)
    known = np.stack([layout.known(~air.lost(PACKETS)) for _ in range(FRAMES)])  # [frames, bytes]
    return 1 - known.mean(1), np.array([_longest_run(~row) for row in known[:50]])


def _longest_run(unknown: np.ndarray) -> int:
    edges = np.flatnonzero(np.diff(unknown.astype(np.int8), prepend=0, append=0))
    return int((edges[1::2] - edges[::2]).max(initial=0))


@pytest.mark.parametrize("loss", [0.01, 0.2])
def test_independent_loss_within_three_deviations(loss: float) -> None:
    (straight, runs), (dealt, short) = (_holes(way, 4, Channel(loss=loss)) for way in (False, True))
    deviation = np.sqrt(loss * (1 - loss) / PACKETS / FRAMES)
    for shares in (straight, dealt):
        assert abs(shares.mean() - loss) < 3 * deviation
        assert 0.9 < shares.std() / (deviation * np.sqrt(FRAMES)) < 1.1
    assert np.allclose(straight, dealt, atol=0.005)  # the same losses, other holes
    assert short.mean() < runs.mean() / 20
    assert (short <= runs).all()


def test_bursts_lose_as_much_as_computed_and_together() -> None:
    lost = BURSTS.open(1).lost(400_000)
    runs = [len(list(run)) for value, run in groupby(lost.tolist()) if value]
    bad = 0.02 / 0.22
    assert BURSTS.mean_loss == pytest.approx((1 - bad) * 0.01 + bad * 0.9)
    assert lost.mean() == pytest.approx(BURSTS.mean_loss, rel=0.05)
    assert np.mean(runs) > 2 / (1 - BURSTS.mean_loss)  # twice as long as with independent losses


def test_time_in_the_bad_state() -> None:
    always = Channel(loss=0.0, bad_loss=1.0, to_bad=0.01, to_good=0.1).open(2)
    lost = always.lost(400_000)
    runs = [len(list(run)) for value, run in groupby(lost.tolist()) if value]
    assert np.mean(runs) == pytest.approx(10, rel=0.1)  # geometric with mean 1 / to_good
    assert lost.mean() == pytest.approx(1 / 11, rel=0.1)


def test_a_burst_goes_on_in_the_next_call() -> None:
    air = Channel(to_bad=0.1, to_good=0.1).open(3)
    states = [air.lost(1)[0] for _ in range(4000)]
    changes = sum(a != b for a, b in pairwise(states))
    assert changes == pytest.approx(400, rel=0.2)
    assert np.mean(states) == pytest.approx(0.5, abs=0.1)
    assert air.lost(0).shape == (0,)


def test_nothing_happens_by_default() -> None:
    assert Channel().open(0).carry(SENT) == SENT
    assert Channel(loss=1).open(0).carry(SENT) == []


@given(st.integers(0, 2**32), st.floats(0, 1), st.floats(0, 1), st.floats(0, 50))
def test_what_arrives_was_sent(seed: int, loss: float, duplicates: float, jitter: float) -> None:
    channel = Channel(loss=loss, duplicates=duplicates, jitter=jitter)
    arrived = channel.open(seed).carry(SENT)
    assert set(arrived) <= set(SENT)
    assert all(arrived.count(one) <= 2 for one in arrived[:20])
    assert arrived == channel.open(seed).carry(SENT)
    places = np.array([int.from_bytes(one, "little") for one in arrived])
    overtaken = np.maximum.accumulate(places) - places if len(places) else places
    assert (overtaken <= jitter + 1).all()


def test_duplicates_reordering_and_bit_errors() -> None:
    air = Channel(duplicates=0.5, jitter=10).open(0)
    arrived = air.carry(SENT)
    assert set(arrived) == set(SENT)
    assert len(arrived) == pytest.approx(750, abs=60)
    assert arrived != sorted(arrived, key=lambda one: int.from_bytes(one, "little"))
    damaged = Channel(bit_errors=1).open(0).carry([bytes(40)] * 400)
    ones = [int.from_bytes(one, "big").bit_count() for one in damaged]
    assert set(ones) == {1}
    assert len(set(damaged)) > 200  # spread over the packet


def test_two_seeds_differ() -> None:
    first, second = (Air(Channel(loss=0.5), seed).carry(SENT) for seed in (0, 1))
    assert first != second
