"""What the size of a formula buys, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence

from modicum.report.curves import AXIS, HEAD, line, x_of
from modicum.report.evolution_figures import HEIGHT, RIGHT, WIDE, Scale, diamond, dot, names, told
from modicum.report.svg import svg, text_at
from modicum.search.found import Entry, MetricSearch


def pareto(found: MetricSearch) -> str:
    """Size of the formula along, perplexity up; a line joins those that nothing smaller beats."""
    scale, largest = Scale(found), max(entry.size for entry in found.entries)
    largest = max(largest, *(metric.size for metric in found.metrics)) + 1
    points = [
        dot(
            x_of(entry.size, largest, RIGHT),
            scale.y(entry.fitness),
            told(i, entry),
            "" if entry.full else "faint",
        )
        for i, entry in enumerate(found.entries)
        if entry.fitness is not None
    ]
    path: list[tuple[float, float]] = []
    for size, fitness in front(found.entries):
        x = x_of(size, largest, RIGHT)
        path += [(x, path[-1][1])] if path else []
        path.append((x, scale.y(fitness)))
    marks = [
        diamond(
            x_of(metric.size, largest, RIGHT), scale.y(metric.fitness), f"{metric.name}: {metric.formula}"
        )
        for metric in found.metrics[1:]
    ]
    ticks = [
        text_at(x_of(size, largest, RIGHT), HEAD + HEIGHT + AXIS / 2, str(size), "middle")
        for size in range(2, largest, 2)
    ]
    label = f"Perplexity against the size of the formula, 1 to {largest - 1} parts"
    end = text_at(WIDE, HEAD + HEIGHT + AXIS / 2, "parts of the formula", "end")
    front_line = line(path, "the best of every size")
    parts = [*scale.grid(), *points, front_line, *marks, *names(found, scale), *ticks, end]
    return svg(WIDE, HEAD + HEIGHT + AXIS, label, parts)


def front(entries: Sequence[Entry]) -> list[tuple[int, float]]:
    """Size and fitness of the candidates that no smaller or equally large one beats, smallest first."""
    found: list[tuple[int, float]] = []
    ranked = sorted(
        (entry.size, entry.fitness) for entry in entries if entry.fitness is not None and entry.full
    )
    for size, fitness in ranked:
        if not found or fitness < found[-1][1]:
            found.append((size, fitness))
    return found
