"""How a learned choice of blocks came about, as inline SVG: the probabilities of all blocks, and how sure it became.

Both pictures have one axis of steps. A point stands for the steps since the point before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from statistics import fmean

from modicum.evaluate.depth_comparison import Decision, SearchCurve
from modicum.models.depth import spans
from modicum.report.curves import AXIS, HEAD, HEIGHT, LABEL, line, step_axis, thinned, value_grid, x_of, y_of
from modicum.report.svg import svg, text_at
from modicum.report.units import percent

WIDE, PLOT = 836, 702  # pixels: of the page; where the plot ends and the choice begins
ROW, ROWS, GAP, TEXT = 22, 420, 7, 14  # pixels: highest row, all rows, between groups, a line of text
MOST_COLUMNS, SHADES = 100, 20


def probability_map(decision: Decision) -> str:
    """Steps along, blocks down: the stronger the colour, the likelier the block stays; the choice stands behind.

    Args:
        decision: with its history.
    """
    history, groups = _history(decision), spans(decision.groups)
    tops, row = _rows(groups)
    bottom = tops[-1] + row
    parts = _heads() + _cells(history, tops, row)
    for block, top in enumerate(tops):
        kept = block in decision.kept
        parts += [_row_ends(block, top, row, kept), _row_title(history, block, top, row, kept)]
    for span, value in zip(groups, history.confidence[-1], strict=True):
        parts.append(_bracket(tops[span[0]], tops[span[-1]] + row, value))
    label = f"Probability that each of {decision.of} blocks stays, over {history.step[-1]:,} steps; the table has it"
    return svg(WIDE, bottom + AXIS, label, [*parts, *step_axis(history.step[-1], PLOT, bottom)])


def confidence_curve(decision: Decision) -> str:
    """How likely the likeliest choice of every group was: a thin line per group, their mean as a thick one.

    Args:
        decision: with its history.
    """
    history = _history(decision)
    last, means = history.step[-1], [fmean(values) for values in history.confidence]
    places = [x_of(step, last, PLOT) for step in history.step]

    def drawn(values: Sequence[float], title: str, kind: str = "") -> str:
        points = [(x, y_of(value, 1.0)) for x, value in zip(places, values, strict=True)]
        return line(points, f"{title}: {percent(values[-1])} at the end", kind)

    groups = zip(spans(decision.groups), zip(*history.confidence, strict=True), strict=True)
    lines = [drawn(values, blocks_of(span), "faint") for span, values in groups]
    mean = drawn(means, "mean of all groups")
    end = text_at(PLOT + 8, y_of(means[-1], 1.0), f"mean {percent(means[-1], 2)}", "start", "value")
    label = (
        f"Probability of the likeliest choice, mean of {len(decision.groups)} groups: {percent(means[0])} at step "
        f"{history.step[0]:,}, {percent(means[-1])} at step {last:,}"
    )
    parts = [
        *value_grid(1.0, PLOT, lambda share: percent(share, 2)),
        *lines,
        mean,
        end,
        *step_axis(last, PLOT),
    ]
    return svg(WIDE, HEAD + HEIGHT + AXIS, label, parts)


def blocks_of(span: range) -> str:
    """A group in words."""
    return f"block {span[0]}" if len(span) == 1 else f"blocks {span[0]} to {span[-1]}"


def _history(decision: Decision) -> SearchCurve:
    assert decision.history is not None
    return decision.history


def _rows(groups: Sequence[range]) -> tuple[list[int], int]:
    """The upper end of every block's row, and the height of a row."""
    row = max(8, min(ROW, ROWS // groups[-1].stop))
    return [HEAD + block * row + place * GAP for place, span in enumerate(groups) for block in span], row


def _cells(history: SearchCurve, tops: Sequence[int], row: int) -> list[str]:
    """One path per shade; neighbours of one shade are one rectangle."""
    points = thinned(len(history.step), MOST_COLUMNS)
    ends = [round(x_of(history.step[point], history.step[-1], PLOT)) for point in points]
    paths: dict[int, list[str]] = {}
    for block, top in enumerate(tops):
        shades = [round(SHADES * history.kept_probability[point][block]) for point in points]
        start = LABEL
        for shade, run in groupby(zip(shades, ends, strict=True), key=lambda each: each[0]):
            end = list(run)[-1][1]
            paths.setdefault(shade, []).append(f"M{start} {top + 1}H{end}v{row - 2}H{start}z")
            start = end
    return [
        f'<path class="gain" shape-rendering="crispEdges" fill-opacity="{0.04 + 0.86 * shade / SHADES:.3f}" '
        f'd="{"".join(parts)}"/>'
        for shade, parts in sorted(paths.items())
    ]


def _row_title(history: SearchCurve, block: int, top: int, row: int, kept: bool) -> str:
    """What a pointer over a row is told."""
    first, last = history.kept_probability[0][block], history.kept_probability[-1][block]
    title = (
        f"block {block} {_fate(kept)}: probability {percent(first)} at step {history.step[0]:,}, "
        f"{percent(last)} at step {history.step[-1]:,}"
    )
    shape = f'<rect x="{LABEL}" y="{top}" width="{PLOT - LABEL}" height="{row}" fill-opacity="0"/>'
    return f"<g><title>{escape(title)}</title>{shape}</g>"


def _row_ends(block: int, top: int, row: int, kept: bool) -> str:
    """The number of a block before its row, and what became of it behind; squares where words do not fit."""
    middle, kind = top + row / 2, "value" if kept else "label"
    name = text_at(LABEL - 8, middle, str(block), "end", kind) if block % -(-TEXT // row) == 0 else ""
    if row >= TEXT:
        return name + text_at(PLOT + 8, middle, _fate(kept), "start", kind)
    look = "gain" if kept else "dense"
    return name + f'<rect class="{look}" x="{PLOT + 8}" y="{top + 1}" width="{row - 2}" height="{row - 2}"/>'


def _bracket(top: int, bottom: int, value: float) -> str:
    """A line along the rows of a group, and the probability of its choice."""
    side = f'<rect class="dense" x="{WIDE - 62}" y="{top + 1}" width="2" height="{bottom - top - 2}"/>'
    return side + text_at(WIDE, (top + bottom) / 2, percent(value, 2), "end")


def _heads() -> list[str]:
    names = ((LABEL - 8, "block", "end"), (PLOT + 8, "choice", "start"), (WIDE, "certain", "end"))
    return [text_at(x, HEAD / 2 - 2, name, anchor) for x, name, anchor in names]


def _fate(kept: bool) -> str:
    return "stays" if kept else "removed"
