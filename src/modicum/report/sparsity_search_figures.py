"""Sparsities of the blocks, as inline SVG."""

from __future__ import annotations

from html import escape
from math import ceil

from modicum.report.curves import AXIS, HEAD, LABEL
from modicum.report.evolution_figures import HEIGHT, WIDE, diamond
from modicum.report.svg import svg, text_at
from modicum.report.units import percent
from modicum.search.found import SparsitySearch

WIDEST = 56  # pixels of a bar
NARROWEST = 26  # pixels that the number of a block needs


def sparsities(found: SparsitySearch) -> str:
    """A bar for every block, the mean as a line through all, and the sparsities of OWL as marks."""
    own, _, owl = (each.sparsities for each in found.allocations)
    mean, each = found.settings.sparsity, (WIDE - LABEL) / len(own)
    wide = min(0.6 * each, WIDEST)
    parts = [_line(share) for share in (0, 0.25, 0.5, 0.75, 1)]
    for place, (name, share, other) in enumerate(zip(found.blocks, own, owl, strict=True)):
        x, top = LABEL + (place + 0.5) * each, _y(share)
        parts.append(
            f"<g><title>{escape(name)}: {percent(share)}, OWL {percent(other)}</title>"
            f'<rect class="gain" x="{x - wide / 2:.1f}" y="{top:.1f}" width="{wide:.1f}" '
            f'height="{HEAD + HEIGHT - top:.1f}" rx="2"/></g>'
        )
        parts.append(diamond(x, _y(other), f"OWL, {name}: {percent(other)}"))
        if place % ceil(NARROWEST / each) == 0:
            parts.append(text_at(x, HEAD + HEIGHT + AXIS / 2, str(place), "middle"))
        if each > 48:
            parts.append(text_at(x, HEAD + HEIGHT - 14, percent(share), "middle", "on-stored"))
    y = _y(mean)
    parts.append(
        f'<path class="curve" stroke-dasharray="5 4" style="stroke:currentColor" d="M{LABEL} {y:.1f}H{WIDE}"/>'
    )
    label = f"Sparsity of {len(own)} blocks, {percent(min(own))} to {percent(max(own))}, {percent(mean)} on the whole"
    return svg(WIDE, HEAD + HEIGHT + AXIS, label, parts)


def _y(share: float) -> float:
    return HEAD + HEIGHT * (1 - share)


def _line(share: float) -> str:
    y = _y(share)
    line = f'<rect class="dense" x="{LABEL}" y="{y:.1f}" width="{WIDE - LABEL}" height="1"/>'
    return line + text_at(LABEL - 8, y, f"{share:.0%}", "end")
