"""How many cached tokens each layer of a next-scale model may carry from map to map.

The cache of a next-scale model grows with the square of the map's side, and most of it is history that most
layers hardly read. A budget says how many tokens (per row and head) a layer carries INTO each map; the map itself
is always seen whole, because entries are dropped only after attention.

ScaleKV (Li et al., NeurIPS 2025, arXiv 2505.19602) splits one total unevenly. A few (layer, map) pairs, the
drafters, read all of the history and keep nearly all of it; the others, the refiners, share what is left:

    uniform   B  B  B  B  B  B
    ScaleKV   b  b  r  r  r  r      2 b + 4 r = 6 B at every map; b grows from map to map, r shrinks

Equation 4 of the paper asks for the total only summed over the maps and lets refiners shrink linearly. The
published budget tables do neither; `scale_aware` follows the tables, all of whose entries it reproduces.

Legend: L layers, k a map counted from 0, P(k) tokens before it, n(k) tokens in it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import gcd

from modicum.errors import InvalidSetting
from modicum.models.next_scale import Schedule

Drafters = Collection[tuple[int, int]]
"""(layer, map) pairs, both counted from 0."""

FLOOR = (200, 650)  # least tokens of a refiner, for a uniform budget of: as published


@dataclass(frozen=True)
class CacheBudget:
    """Tokens per row and head that every layer may carry into every map.

    Attributes:
        schedule: the maps.
        tokens: `tokens[layer][k]`, from 0 to what the layer holds by then: the tokens that it carried into the
            map before, and that map. Nothing precedes map 0.

    Raises:
        InvalidSetting: a table of another shape, or an entry that a layer cannot hold.
    """

    schedule: Schedule
    tokens: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.tokens or any(len(row) != len(self.schedule) for row in self.tokens):
            raise InvalidSetting(
                f"A cache budget of rows of {[len(row) for row in self.tokens]} entries does not fit.",
                f"Give every layer one entry per map, {len(self.schedule)} of them.",
            )
        for layer, row in enumerate(self.tokens):
            if row != _held(self.schedule, row) or min(row) < 0:
                raise InvalidSetting(
                    f"The cache budget of layer {layer} carries {list(row)} tokens into the maps.",
                    "A layer carries at most what it carried into the map before, and that map.",
                )

    @classmethod
    def uniform(cls, schedule: Schedule, layers: int, tokens: int) -> CacheBudget:
        """The same budget for every layer: `tokens`, or the whole prefix where it is shorter."""
        return cls.wanted(schedule, [[tokens] * len(schedule)] * layers)

    @classmethod
    def wanted(cls, schedule: Schedule, wishes: Iterable[Sequence[int]]) -> CacheBudget:
        """A budget from wishes `[layer][k]`; where a layer holds less by then, it carries what it holds."""
        return cls(schedule, tuple(_held(schedule, row) for row in wishes))

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.tokens)

    @property
    def pruned(self) -> tuple[int, ...]:
        """The maps into which some layer carries less than the whole prefix."""
        whole = enumerate(self.schedule.offsets[:-1])
        return tuple(k for k, prefix in whole if self.total(k) < self.layers * prefix)

    def carried(self, layer: int, scale: int) -> int:
        """Tokens that `layer` may carry into map `scale`."""
        return self.tokens[layer][scale]

    def total(self, scale: int) -> int:
        """Tokens that all layers together carry into map `scale`."""
        return sum(row[scale] for row in self.tokens)


def scale_aware(
    schedule: Schedule,
    layers: int,
    uniform: int,
    drafters: Drafters,
    *,
    window: int = 16,
    floor: int | None = None,
) -> CacheBudget:
    """Split `uniform * layers` tokens at every map between drafters and refiners.

    With B = `uniform`, N_d drafters and N_r refiners at map k, a drafter gets the largest b for which

        b <= limit                                       a drafter cannot carry more than it holds
        N_d b + N_r r = B L   with a whole r >= floor    the refiners share the rest

    where limit is P(k) at the first map with P(k) > B, and b(k-1) + n(k-1) after it. With g = gcd(N_d, N_r) the
    solutions are b = B + t N_r / g, r = B - t N_d / g; the largest t is taken. Maps before the first pruned one
    carry everything. Where a layer changes sides it may hold less than its share; it then carries what it holds,
    and the total stays below B L.

    Args:
        schedule: the maps.
        layers: L.
        uniform: B, the tokens per row and head of every layer if all were equal.
        drafters: those at maps that carry everything anyway have no effect.
        window: probe tokens that the policy keeps in any case.
        floor: least tokens of a refiner; by default the published share of B, 200 of 650, at least `window`.

    Raises:
        InvalidSetting: a drafter outside the model, a budget below the window, or a floor that is not between
            the two.
    """
    if floor is None:
        floor = max(window, uniform * FLOOR[0] // FLOOR[1])
    _check(schedule, layers, uniform, drafters, window, floor)
    columns, drafted = [[0] * layers], 0  # nothing precedes map 0
    for k, new in enumerate(schedule.tokens[:-1], start=1):
        limit = drafted + new
        members = [(layer, k) in drafters for layer in range(layers)]
        if schedule.offsets[k] <= uniform:
            drafted = refined = limit
        else:
            drafted, refined = _split(uniform, sum(members), layers - sum(members), limit, floor)
        columns.append([drafted if member else refined for member in members])
    return CacheBudget.wanted(schedule, zip(*columns, strict=True))


def pruned_scales(schedule: Schedule, uniform: int) -> range:
    """The maps preceded by more than `uniform` tokens: those where a layer can be a drafter or a refiner."""
    whole = sum(prefix <= uniform for prefix in schedule.offsets[:-1])
    return range(whole, len(schedule))


def _split(uniform: int, drafters: int, refiners: int, limit: int, floor: int) -> tuple[int, int]:
    """Tokens of a drafter and of a refiner at one map; both `uniform` if all layers are of one kind."""
    if not drafters or not refiners:
        return uniform, uniform
    common = gcd(drafters, refiners)
    up, down = refiners // common, drafters // common
    t = min((limit - uniform) // up, (uniform - floor) // down)
    return uniform + t * up, uniform - t * down


def _check(
    schedule: Schedule, layers: int, uniform: int, drafters: Drafters, window: int, floor: int
) -> None:
    if uniform < window:
        raise InvalidSetting(
            f"A cache budget of {uniform} tokens is below the window of {window} that is always kept.",
            "Give a larger budget, or a smaller window.",
        )
    if not window <= floor <= uniform:
        raise InvalidSetting(
            f"Refiners cannot keep {floor} tokens each of a budget of {uniform} with a window of {window}.",
            "Choose a floor between the window and the budget.",
        )
    strangers = [
        pair for pair in drafters if pair[0] not in range(layers) or pair[1] not in range(len(schedule))
    ]
    if strangers:
        raise InvalidSetting(
            f"There is no layer {strangers[0][0]} at map {strangers[0][1]} to be a drafter.",
            f"Give pairs (layer, map) counted from 0; there are {layers} layers and {len(schedule)} maps.",
        )


def _held(schedule: Schedule, wishes: Sequence[int]) -> tuple[int, ...]:
    """The tokens that a layer carries into each map: its wish, or what it holds where that is less."""
    row = [0]
    for wish, new in zip(wishes[1:], schedule.tokens[:-1], strict=True):
        row.append(min(wish, row[-1] + new))
    return tuple(row)
