"""Which blocks of a stack stay, as inline SVG: kept blocks coloured by how sure the choice was, under their groups."""

from __future__ import annotations

from html import escape

from modicum.evaluate.depth_comparison import Decision
from modicum.models.depth import spans
from modicum.report.svg import svg, text_at
from modicum.report.units import percent

CELL, BRACKET = 34, 30  # pixels of height: a block; the line under a group with its probability
WIDTH, WIDEST = 836, 64  # pixels: of the page, of a block


def stack(decision: Decision) -> str:
    """Blocks along; removed ones are empty, and below every group stands the probability of its choice."""
    step = min(WIDEST, WIDTH // decision.of)
    sure = _by_block(decision)
    kept = set(decision.kept)
    cells = [_block(block, step, block in kept, sure.get(block)) for block in range(decision.of)]
    brackets = _brackets(decision, step)
    height = CELL + (BRACKET if brackets else 0)
    return svg(decision.of * step, height, "Blocks that stay", [*cells, *brackets])


def _by_block(decision: Decision) -> dict[int, float]:
    """The probability of the choice that a block belongs to."""
    if not decision.confidence:
        return {}
    return {
        block: value
        for span, value in zip(spans(decision.groups), decision.confidence, strict=True)
        for block in span
    }


def _block(block: int, step: int, kept: bool, sure: float | None) -> str:
    what = "stays" if kept else "removed"
    title = f"block {block}: {what}" + (
        "" if sure is None else f", probability of the choice {percent(sure)}"
    )
    # Up to 0.65 of the full colour, so that the number on it stays readable on a light and on a dark page.
    look = f'class="gain" fill-opacity="{0.05 + 0.6 * (1 if sure is None else sure):.3f}"'
    shape = (
        f'<rect {look if kept else """class="dense" fill-opacity="0.35" """} x="{block * step + 1}" y="1" '
        f'width="{step - 2}" height="{CELL - 2}" rx="3"/>'
    )
    number = text_at((block + 0.5) * step, CELL / 2, str(block), "middle", "value" if kept else "label")
    return f"<g><title>{escape(title)}</title>{shape}{number if step >= 20 else ''}</g>"


def _brackets(decision: Decision, step: int) -> list[str]:
    if not decision.confidence:
        return []
    found = []
    for span, value in zip(spans(decision.groups), decision.confidence, strict=True):
        start, width = span.start * step, len(span) * step
        found.append(f'<rect class="dense" x="{start + 3}" y="{CELL + 3}" width="{width - 6}" height="2"/>')
        if width >= 40:
            found.append(text_at(start + width / 2, CELL + BRACKET / 2 + 4, percent(value, 2), "middle"))
    return found
