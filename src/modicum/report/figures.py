"""Where in the model it happened, as inline SVG: no library, no script, colours from the style of the page.

Every scale starts at zero, so that equal layers look equal and a small difference looks small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean

from modicum.evaluate import LayerRecord
from modicum.report.svg import SMALL, svg, text_at
from modicum.report.units import byte_size, number, percent

LABEL, CELL_HEIGHT, AXIS = 58, 30, 24  # pixels: row labels, one row, the line of block numbers
VALUES_FIT = 16  # blocks up to which each cell is wide enough for its number
OUTSIDE = "rest"  # the column of layers that belong to no block


@dataclass(frozen=True)
class Quantity:
    """What a heat map shows: a field of `LayerRecord`, its title, how to write it and its colour class."""

    field: str
    title: str
    write: Callable[[float], str]
    short: Callable[[float], str]
    colour: str
    full: float | None = None  # value of the strongest colour; None for the largest one found


QUANTITIES = (
    Quantity("relative_error", "Relative error", number, lambda v: number(v, 2), "cost"),
    Quantity("sparsity", "Sparsity", percent, lambda v: f"{100 * v:.0f} %", "gain", full=1.0),
    Quantity("bits_per_weight", "Bits per weight", number, lambda v: number(v, 2), "gain"),
)


def heat_map(layers: Sequence[LayerRecord], quantity: Quantity) -> str | None:
    """Blocks along, roles down, one quantity as colour; None if no layer has it.

    Several layers of one role and block (experts) share a cell: it shows their mean, its title the range.
    """
    known = [layer for layer in layers if getattr(layer, quantity.field) is not None]
    if not known:
        return None
    blocks, roles = _blocks(known), list(dict.fromkeys(layer.role for layer in known))
    full = quantity.full or max(getattr(layer, quantity.field) for layer in known) or 1.0
    step = _step(blocks)
    cells = [
        _cell(
            quantity, found, LABEL + column * step, row * CELL_HEIGHT, step, full, len(blocks) <= VALUES_FIT
        )
        for row, role in enumerate(roles)
        for column, block in enumerate(blocks)
        if (found := [layer for layer in known if layer.role == role and _block(layer) == block])
    ]
    labels = [text_at(LABEL - 10, (row + 0.5) * CELL_HEIGHT, role, "end") for row, role in enumerate(roles)]
    height = len(roles) * CELL_HEIGHT
    return svg(
        LABEL + len(blocks) * step,
        height + AXIS,
        f"{quantity.title} by block and role",
        [*cells, *labels, *_block_axis(blocks, step, height + AXIS / 2 + 2)],
    )


def size_chart(layers: Sequence[LayerRecord]) -> str | None:
    """One column per block: the original bytes as an outline, the stored bytes filled in; None if unknown."""
    known = [layer for layer in layers if layer.nbytes is not None and layer.dense_nbytes]
    if not known:
        return None
    blocks = _blocks(known)
    sizes = {block: _sizes([layer for layer in known if _block(layer) == block]) for block in blocks}
    full = max(max(pair) for pair in sizes.values())
    step = _step(blocks)
    top, height = 18, 150
    bars: list[str] = []
    for column, (block, (stored, dense)) in enumerate(sizes.items()):
        title = f"block {block}: {byte_size(stored)} of {byte_size(dense)} ({percent(stored / dense)})"
        x, width = LABEL + column * step + 0.12 * step, 0.76 * step
        shapes = _bar("dense", x, width, top, height, dense / full)
        shapes += _bar("stored", x, width, top, height, stored / full)
        if len(blocks) <= VALUES_FIT:
            y = top + height * (1 - max(stored, dense) / full) - 9
            shapes += text_at(x + width / 2, y, f"{100 * stored / dense:.0f} %", "middle")
        bars.append(f"<g><title>{escape(title)}</title>{shapes}</g>")
    axis = [text_at(LABEL - 10, top, byte_size(full), "end"), text_at(LABEL - 10, top + height, "0", "end")]
    labels = _block_axis(blocks, step, top + height + AXIS / 2 + 2)
    return svg(LABEL + len(blocks) * step, top + height + AXIS, "Size by block", [*bars, *axis, *labels])


def colour_scale(layers: Sequence[LayerRecord], quantity: Quantity) -> tuple[str, str]:
    """The texts at the two ends of a heat map's colour scale."""
    values = [value for layer in layers if (value := getattr(layer, quantity.field)) is not None]
    return quantity.write(0.0), quantity.write(quantity.full or max(values))


def _cell(
    quantity: Quantity, layers: list[LayerRecord], x: float, y: float, width: float, full: float, text: bool
) -> str:
    values = [getattr(layer, quantity.field) for layer in layers]
    mean, first = fmean(values), layers[0]
    title = f"{first.name}: {quantity.write(mean)}"
    if len(layers) > 1:
        span = f"{quantity.write(min(values))} to {quantity.write(max(values))}"
        title = (
            f"block {_block(first)}, {first.role}: mean {quantity.write(mean)}, {len(layers)} layers, {span}"
        )
    # Up to 0.65 of the full colour, so that the number on it stays readable on a light and on a dark page.
    opacity = 0.05 + 0.6 * min(1.0, mean / full)
    shape = (
        f'<rect class="{quantity.colour}" x="{x + 1:.1f}" y="{y + 1:.1f}" width="{width - 2:.1f}" '
        f'height="{CELL_HEIGHT - 2}" rx="3" fill-opacity="{opacity:.3f}"/>'
    )
    label = (
        text_at(x + width / 2, y + CELL_HEIGHT / 2, quantity.short(mean), "middle", "value") if text else ""
    )
    return f"<g><title>{escape(title)}</title>{shape}{label}</g>"


def _bar(kind: str, x: float, width: float, top: float, height: float, share: float) -> str:
    y, tall = top + height * (1 - share), height * share
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{tall:.1f}" rx="2"/>'


def _block_axis(blocks: list[str], step: float, y: float) -> list[str]:
    every = -(-28 // int(step))  # labels need about 28 pixels
    return [
        text_at(LABEL + (column + 0.5) * step, y, block, "middle")
        for column, block in enumerate(blocks)
        if column % every == 0 or block == OUTSIDE
    ]


def _blocks(layers: Sequence[LayerRecord]) -> list[str]:
    numbered = sorted({layer.block for layer in layers if layer.block is not None})
    outside = [OUTSIDE] if any(layer.block is None for layer in layers) else []
    return [str(block) for block in numbered] + outside


def _block(layer: LayerRecord) -> str:
    return OUTSIDE if layer.block is None else str(layer.block)


def _step(blocks: list[str]) -> int:
    """Pixels per block: two pictures fit side by side up to 8 blocks; very many scroll, not vanish."""
    if len(blocks) <= 8:
        return min(64, (SMALL - LABEL) // len(blocks))
    return 48 if len(blocks) <= VALUES_FIT else max(12, 838 // len(blocks))


def _sizes(layers: list[LayerRecord]) -> tuple[int, int]:
    return sum(layer.nbytes or 0 for layer in layers), sum(layer.dense_nbytes or 0 for layer in layers)
