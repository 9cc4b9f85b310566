"""The air between node and gateway, simulated: what is lost, late, doubled or damaged.

    independent       every packet is lost with probability `loss`
    Gilbert-Elliott   two states; a good one with `loss`, a bad one with `bad_loss`; `to_bad` and `to_good` are the
                      chances of changing before a packet. Losses come in bursts of 1 / to_good packets on average.

The states are drawn as runs whose lengths are geometric, so that no loop goes over packets. Same seed, same losses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Mask = NDArray[np.bool_]


class Channel(BaseModel):
    """What the air does to packets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: float = Field(0.0, ge=0, le=1, description="chance that a packet is lost (in the good state)")
    bad_loss: float = Field(1.0, ge=0, le=1, description="the same in the bad state")
    to_bad: float = Field(0.0, ge=0, le=1, description="chance to enter the bad state; 0 leaves it out")
    to_good: float = Field(0.25, gt=0, le=1, description="chance to leave the bad state")
    duplicates: float = Field(0.0, ge=0, le=1, description="share of packets that arrive twice")
    bit_errors: float = Field(0.0, ge=0, le=1, description="share of packets with one bit flipped")
    jitter: float = Field(0.0, ge=0, description="packets may be overtaken by up to so many later ones")

    @property
    def mean_loss(self) -> float:
        """Expected share of lost packets."""
        bad = self.to_bad / (self.to_bad + self.to_good)
        return (1 - bad) * self.loss + bad * self.bad_loss

    def open(self, seed: int) -> Air:
        """One transmission through this channel."""
        return Air(self, seed)


class Air:
    """A channel with its state: what is sent through it meets the same burst as what was sent before.

    Args:
        channel: what happens.
        seed: of everything random.
    """

    def __init__(self, channel: Channel, seed: int) -> None:
        self.channel = channel
        self.random = np.random.default_rng(seed)
        share = channel.to_bad / (channel.to_bad + channel.to_good)
        self.bad = bool(self.random.random() < share)

    def lost(self, count: int) -> Mask:
        """Which of the next `count` packets are lost, bool `[count]`."""
        chance = np.where(self._bad(count), self.channel.bad_loss, self.channel.loss)
        return self.random.random(count) < chance

    def carry(self, packets: Sequence[bytes]) -> list[bytes]:
        """What arrives of these packets, in the order in which it arrives."""
        channel, random = self.channel, self.random
        arrived = np.flatnonzero(~self.lost(len(packets)))
        arrived = np.repeat(arrived, 1 + (random.random(len(arrived)) < channel.duplicates))
        late = arrived + random.random(len(arrived)) * channel.jitter
        order = arrived[np.argsort(late, kind="stable")]
        damaged = random.random(len(order)) < channel.bit_errors
        return [
            self._flipped(packets[index]) if hit else packets[index]
            for index, hit in zip(order, damaged, strict=True)
        ]

    def _flipped(self, packet: bytes) -> bytes:
        bit = int(self.random.integers(8 * len(packet)))
        changed = bytearray(packet)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)

    def _bad(self, count: int) -> Mask:
        """The state before each of `count` packets, bool `[count]`; remembers the last one."""
        if self.channel.to_bad == 0:
            return np.zeros(count, bool)
        runs = count + 2  # every run is at least one packet long
        chances = np.full(runs, self.channel.to_bad)
        chances[(0 if self.bad else 1) :: 2] = self.channel.to_good
        lengths = np.minimum(self.random.geometric(chances), count + 1)
        lengths[0] -= 1  # the change may come before the first packet
        states = np.repeat((np.arange(runs) % 2 == 0) == self.bad, lengths)[:count]
        if count:
            self.bad = bool(states[-1])
        return states
