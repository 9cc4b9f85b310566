"""Pieces of inline SVG; colours come from the style of the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

SMALL = 412  # pixels: two pictures of this width fit side by side, and one shrinks to fit a phone


def text_at(x: float, y: float, text: str, anchor: str, kind: str = "label") -> str:
    """A text; `anchor` is start, middle or end, `kind` its class in the style sheet."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    """A picture of these pixels; `label` is what a screen reader says."""
    kind = "small" if width <= SMALL else "large"
    return (
        f'<svg class="{kind}" role="img" aria-label="{escape(label)}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}">{"".join(parts)}</svg>'
    )
