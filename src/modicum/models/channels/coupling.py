"""Which channels hang together: numbers, ties between them, and the axes of parameters that hold them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Slot:
    """One axis of one parameter or buffer.

    Attributes:
        tensor: dotted name, such as "layer1.0.conv1.weight".
        dim: the axis.
        channels: the channel at each position along it, int64 [n].
        produces: whether the layer makes these channels (the others read or scale them).
    """

    tensor: str
    dim: int
    channels: Ids
    produces: bool


@dataclass(frozen=True)
class Channels:
    """The removable units of a model.

    Attributes:
        slots: all axes that hold channels; axes of one tensor are listed apart.
        fixed: bool [channels], True for what must stay: inputs and outputs of the model.
        groups: channels made by the same layers, one int64 array per group of layers; fixed ones are left out.
    """

    slots: tuple[Slot, ...]
    fixed: NDArray[np.bool_]
    groups: tuple[Ids, ...]

    def __len__(self) -> int:
        return len(self.fixed)


@dataclass
class Ledger:
    """Collects numbers, ties and axes while a graph is followed."""

    count: int = 0
    ties: list[tuple[Ids, Ids]] = field(default_factory=list)
    bound: dict[tuple[str, int], tuple[Ids, bool]] = field(default_factory=dict)
    ends: list[Ids] = field(default_factory=list)

    def fresh(self, count: int) -> Ids:
        """New channels."""
        self.count += count
        return np.arange(self.count - count, self.count)

    def tie(self, a: Ids, b: Ids) -> None:
        """Position by position, a goes with b."""
        self.ties.append((a, b))

    def bind(self, tensor: str, dim: int, ids: Ids, *, produces: bool = False) -> None:
        """The axis holds these channels; a layer that is used twice ties what it is used on."""
        before = self.bound.get((tensor, dim))
        if before is not None:
            self.tie(before[0], ids)
        else:
            self.bound[tensor, dim] = (ids, produces)

    def fix(self, ids: Ids) -> None:
        """These must stay."""
        self.ends.append(ids)

    def settle(self) -> Channels:
        """Ties resolved: what hangs together is one channel."""
        of = components(self.count, self.ties)
        slots = tuple(Slot(name, dim, of[ids], made) for (name, dim), (ids, made) in self.bound.items())
        fixed = np.zeros(int(of.max(initial=-1)) + 1, dtype=bool)
        for ids in self.ends:
            fixed[of[ids]] = True
        return Channels(slots, fixed, _groups(slots, fixed))


def components(count: int, ties: Iterable[tuple[Ids, Ids]]) -> Ids:
    """The connected component of each of `count` numbers, counted from 0 in the order of their first members."""
    pairs = list(ties)
    label = np.arange(count)
    if pairs:
        a, b = np.concatenate([x for x, _ in pairs]), np.concatenate([y for _, y in pairs])
        while True:
            low = np.minimum(label[a], label[b])
            lower = label.copy()
            np.minimum.at(lower, a, low)
            np.minimum.at(lower, b, low)
            lower = lower[lower]  # a label is itself a number: take over what that one has found
            if np.array_equal(lower, label):
                break
            label = lower
    return np.unique(label, return_inverse=True)[1].astype(np.int64)


def _groups(slots: tuple[Slot, ...], fixed: NDArray[np.bool_]) -> tuple[Ids, ...]:
    """Channels that share a layer that makes them."""
    made = [slot.channels for slot in slots if slot.produces]
    group = components(len(fixed), [(channels[:-1], channels[1:]) for channels in made])
    free = np.zeros(len(fixed), dtype=bool)
    for channels in made:
        free[channels] = True
    free &= ~fixed
    return tuple(np.flatnonzero(free & (group == each)) for each in np.unique(group[free]))
