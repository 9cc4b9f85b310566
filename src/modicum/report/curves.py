"""Curves over the steps of a training, as inline SVG; every scale of values begins at zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from math import floor, log10

from modicum.evaluate.depth_comparison import LossCurve
from modicum.report.svg import SMALL, svg, text_at
from modicum.report.units import number

LABEL, HEAD, HEIGHT, AXIS = 58, 20, 120, 26  # pixels: row labels, a line above, a curve, the line of steps
TICKS = (1, 2, 5, 10)  # times a power of ten: what steps are counted in


def loss_curve(method: str, curve: LossCurve) -> str:
    """The loss of one training; points at which every step was left out are passed over."""
    known = [(step, loss) for step, loss in zip(curve.step, curve.loss, strict=True) if loss is not None]
    last, right = curve.step[-1], SMALL - 12
    label = f"Loss of {method} over {last:,} steps"
    if not known:
        return svg(SMALL, HEAD + HEIGHT + AXIS, f"{label}: never finite", step_axis(last, right))
    (first_step, first), (last_step, end) = known[0], known[-1]
    label += f": {number(first)} at step {first_step:,}, {number(end)} at step {last_step:,}"
    full = max(loss for _, loss in known) or 1.0
    drawn = line([(x_of(step, last, right), y_of(loss, full)) for step, loss in known], label)
    parts = [*value_grid(full, right, number), drawn, *step_axis(last, right)]
    return svg(SMALL, HEAD + HEIGHT + AXIS, label, parts)


def line(points: Sequence[tuple[float, float]], title: str, kind: str = "") -> str:
    """A line through points in pixels; `title` is what a pointer over it is told."""
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    look = f"curve {kind}".strip()
    return f'<g><title>{escape(title)}</title><polyline class="{look}" points="{places}"/></g>'


def value_grid(full: float, right: float, write: Callable[[float], str]) -> list[str]:
    """Lines at nothing, half and all of `full`, with their values before them."""
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = y_of(share, 1.0)
        parts.append(f'<rect class="dense" x="{LABEL}" y="{y:.1f}" width="{right - LABEL}" height="1"/>')
        parts.append(text_at(LABEL - 8, y, write(share * full), "end"))
    return parts


def step_axis(last: int, right: float, top: float = HEAD + HEIGHT) -> list[str]:
    """Round numbers of steps below `top`, and the last step."""
    least = max(last / (right - LABEL) * 90, 1)  # a number needs about 90 pixels
    scale = 10 ** floor(log10(least))
    every = next(scale * tick for tick in TICKS if scale * tick >= least)
    steps = [step for step in range(0, last, every) if last - step >= 0.7 * every]
    texts = [text_at(x_of(step, last, right), top + AXIS / 2, f"{step:,}", "middle") for step in steps[1:]]
    end = text_at(right, top + AXIS / 2, f"{last:,} steps", "end")
    return [text_at(LABEL, top + AXIS / 2, "0", "middle"), *texts, end]


def x_of(step: float, last: int, right: float) -> float:
    """Where a step lies."""
    return LABEL + (right - LABEL) * step / last


def y_of(value: float, full: float) -> float:
    """Where a value lies, with `full` at the upper end."""
    return HEAD + HEIGHT * (1 - value / full)


def thinned(count: int, most: int) -> list[int]:
    """Indices of at most `most` of `count` points, evenly spread; the last one is among them."""
    few = min(count, most)
    return [(index + 1) * count // few - 1 for index in range(few)]
