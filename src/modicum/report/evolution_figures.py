"""How a search by evolution went, as inline SVG: perplexity over candidates, and descent."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import accumulate
from math import log

from modicum.report.curves import AXIS, HEAD, LABEL, line, step_axis, x_of
from modicum.report.svg import svg, text_at
from modicum.report.units import number
from modicum.search.found import Entry, Search

WIDE, RIGHT, HEIGHT = 836, 700, 220  # pixels: of the page, where the plot ends, of the plot
BOX, STEP, MARGIN, GAP = (
    38,
    66,
    8,
    10,
)  # pixels: height of a candidate, from generation to generation, around, between
FARTHEST = 30  # times the best distance to the dense model
LETTER = 7.0  # pixels of a letter of 12 px in a monospaced font, and a little


class Scale:
    """Heights of perplexities: the better end of what was found gets the space.

    The distance to the dense model is drawn in powers of ten, down from the worst or
    from `FARTHEST` times the best; what is farther away lies on the upper edge.

    Args:
        found: the search.
    """

    def __init__(self, found: Search) -> None:
        gaps = sorted(value - found.dense for value in _fitnesses(found) if value > found.dense) or [1.0]
        self.dense = found.dense
        self.low, self.high = 0.9 * gaps[0], max(min(1.2 * gaps[-1], FARTHEST * gaps[0]), 2 * gaps[0])

    def y(self, fitness: float) -> float:
        """Where a perplexity lies."""
        gap = min(max(fitness - self.dense, self.low), self.high)
        return HEAD + HEIGHT * (1 - log(gap / self.low) / log(self.high / self.low))

    def grid(self) -> list[str]:
        """Lines at five heights, with the perplexity before them."""
        parts = []
        for step in range(5):
            gap = self.low * (self.high / self.low) ** (step / 4)
            y = self.y(self.dense + gap)
            parts.append(f'<rect class="dense" x="{LABEL}" y="{y:.1f}" width="{RIGHT - LABEL}" height="1"/>')
            parts.append(text_at(LABEL - 8, y, number(self.dense + gap, 4), "end"))
        return parts


def progress(found: Search) -> str:
    """Every candidate as a point, the best so far as a line, what it is compared with as marks at the right end."""
    scale, last = Scale(found), len(found.entries)
    known = [(i + 1, entry) for i, entry in enumerate(found.entries) if entry.fitness is not None]
    points = [
        dot(
            x_of(i, last, RIGHT),
            scale.y(entry.fitness or 0),
            told(i - 1, entry),
            "" if entry.full else "faint",
        )
        for i, entry in known
    ]
    best = list(accumulate((entry.fitness or 0 for _, entry in known), min))
    path = [(x_of(known[0][0], last, RIGHT), scale.y(best[0]))]
    for (i, _), before, value in zip(known[1:], best, best[1:], strict=False):
        path += [(x_of(i, last, RIGHT), scale.y(before)), (x_of(i, last, RIGHT), scale.y(value))]
    path.append((RIGHT, scale.y(best[-1])))
    drawn = line(path, f"best so far: {number(best[-1], 4)} at the end")
    label = (
        f"Perplexity of {last} candidates; the best is {number(best[-1], 4)}, dense {number(found.dense, 4)}"
    )
    parts = [*scale.grid(), *points, drawn, *names(found, scale), *_axis(found, last)]
    return svg(WIDE, HEAD + HEIGHT + AXIS, label, parts)


def _fitnesses(found: Search) -> list[float]:
    own = [entry.fitness for entry in found.entries if entry.fitness is not None]
    return own + [metric.fitness for metric in found.compared if metric.fitness < float("inf")]


def told(index: int, entry: Entry) -> str:
    """What a pointer over a candidate is told."""
    value = "invalid" if entry.fitness is None else number(entry.fitness, 5)
    early = "" if entry.full else ", given up early"
    return f"{index}: {entry.genome} ({entry.operator}, generation {entry.generation}): {value}{early}"


def dot(x: float, y: float, title: str, kind: str = "") -> str:
    """A candidate; pale if it was given up early."""
    opacity = 0.3 if kind else 0.6
    return (
        f'<g><title>{escape(title)}</title><circle class="gain" fill-opacity="{opacity}" '
        f'cx="{x:.1f}" cy="{y:.1f}" r="3"/></g>'
    )


def diamond(x: float, y: float, title: str) -> str:
    """What candidates are compared with."""
    shape = f"M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z"
    return f'<g><title>{escape(title)}</title><path class="cost" d="{shape}"/></g>'


def names(found: Search, scale: Scale) -> list[str]:
    """Names of what is compared beside the plot, moved apart where they would overlap."""
    ordered = sorted((metric for metric in found.compared), key=lambda each: scale.y(each.fitness))
    places = spread([scale.y(metric.fitness) for metric in ordered], 15, HEAD + HEIGHT - 6)
    return [
        part
        for metric, place in zip(ordered, places, strict=True)
        for part in (
            f'<path class="{_look(metric.name)}" fill="none" stroke="currentColor" stroke-opacity="0.35" '
            f'd="M{RIGHT} {scale.y(metric.fitness):.1f}L{RIGHT + 14} {place:.1f}"/>',
            text_at(
                RIGHT + 18, place, f"{metric.name} {number(metric.fitness, 4)}", "start", _text(metric.name)
            ),
        )
    ]


def _look(name: str) -> str:
    return "gain" if name == "found" else "cost"


def _text(name: str) -> str:
    return "value" if name == "found" else "label"


def spread(places: Sequence[float], least: float, bottom: float) -> list[float]:
    """Ascending places moved so that neighbours are at least that far apart and none lies below `bottom`."""
    apart: list[float] = []
    for place in places:
        apart.append(max(place, apart[-1] + least) if apart else place)
    for i in range(len(apart) - 1, -1, -1):
        limit = bottom if i == len(apart) - 1 else apart[i + 1] - least
        apart[i] = min(apart[i], limit)
    return apart


def _axis(found: Search, last: int) -> list[str]:
    *ticks, _ = step_axis(last, RIGHT, HEAD + HEIGHT)
    return [*ticks, text_at(RIGHT, HEAD + HEIGHT + AXIS / 2, f"{last:,} candidates", "end")]


def lineage(found: Search, most: int = 24) -> str:
    """The best candidate at the bottom, what it descends from above it, generation by generation.

    Args:
        found: the search.
        most: candidates that are shown; the youngest are.
    """
    shown = found.ancestors()[-most:]
    generations = sorted({found.entries[i].generation for i in shown})
    places: dict[int, tuple[float, float, float]] = {}
    wide = float(WIDE)
    for row, generation in enumerate(generations):
        x: float = LABEL + MARGIN
        for i in (i for i in shown if found.entries[i].generation == generation):
            width = LETTER * max(len(_short(found.entries[i])), len(_below(found.entries[i])) * 0.9) + 12
            places[i] = (x, HEAD + row * STEP, width)
            x += width + GAP
        wide = max(wide, x)
    bottom = HEAD + len(generations) * STEP
    labels = [
        text_at(LABEL - 8, HEAD + row * STEP + BOX / 2, f"gen. {generation}", "end")
        for row, generation in enumerate(generations)
    ]
    edges = [
        _edge(places[parent], places[i])
        for i in shown
        for parent in dict.fromkeys(found.entries[i].parents)
        if parent in places
    ]
    boxes = [_box(found.entries[i], i, places[i], i == found.best) for i in shown]
    label = f"The best candidate descends from {len(found.ancestors()) - 1} others"
    return svg(wide, bottom, label, [*edges, *labels, *boxes])


def _edge(parent: tuple[float, float, float], child: tuple[float, float, float]) -> str:
    x, y = parent[0] + parent[2] / 2, parent[1] + BOX
    to_x, to_y = child[0] + child[2] / 2, child[1]
    middle = (y + to_y) / 2
    return (
        f'<path class="curve faint" d="M{x:.1f} {y:.1f}C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} '
        f'{to_x:.1f} {to_y:.1f}"/>'
    )


def _box(entry: Entry, index: int, place: tuple[float, float, float], best: bool) -> str:
    x, y, width = place
    look = "gain" if best else "dense"
    opacity = 0.25 if best else 0.6
    return (
        f"<g><title>{escape(told(index, entry))}</title>"
        f'<rect class="{look}" fill-opacity="{opacity}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
        f'height="{BOX}" rx="4"/>'
        f'<text x="{x + 6:.1f}" y="{y + 13:.1f}" class="value formula">{escape(_short(entry))}</text>'
        f"{text_at(x + 6, y + 28, _below(entry), 'start')}</g>"
    )


def _short(entry: Entry) -> str:
    return entry.genome if len(entry.genome) <= 44 else entry.genome[:43] + "…"


def _below(entry: Entry) -> str:
    value = "invalid" if entry.fitness is None else number(entry.fitness, 4)
    return f"{entry.operator}  {value}"
