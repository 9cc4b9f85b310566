"""What ScaleKV found in a model, as inline SVG: which layers read the history, and what each may carry."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape
from itertools import accumulate

import torch

from modicum.report.svg import SMALL, svg, text_at

LABEL, CELL, AXIS = 58, 30, 24  # pixels: row labels, one row, the line of map numbers
CHART = 190  # pixels of height
TOP = 14

Table = Sequence[Sequence[int]]


def selectivity_map(asi: Sequence[Sequence[float]], drafters: Collection[tuple[int, int]] = ()) -> str:
    """Layers down, maps along: the stronger the colour, the less selective the layer's attention; drafters framed.

    Args:
        asi: attention selectivity index `[layer][map]`; map 0 has none and is left out.
        drafters: (layer, map) pairs.
    """
    table = torch.tensor(asi, dtype=torch.float64)[:, 1:]  # [layers, maps - 1]
    z = (table - table.mean(0)) / (table.std(0, correction=0) + 1e-6)
    strength = (z.max() - z) / (z.max() - z.min()).clamp_min(1e-6)
    rows, step = len(asi), _step(table.shape[1])
    height = min(CELL, max(8, 420 // rows))
    cells = []
    for layer, (values, shades) in enumerate(zip(z.tolist(), strength.tolist(), strict=True)):
        for column, (value, shade) in enumerate(zip(values, shades, strict=True)):
            drafter = (layer, column + 1) in drafters
            role = ", drafter" if drafter else ""
            title = f"layer {layer}, map {column + 1}: ASI {asi[layer][column + 1]:.4f}, z {value:+.2f}{role}"
            cells.append(
                f"<g><title>{escape(title)}</title>"
                f'<rect class="gain{" drafter" if drafter else ""}" x="{LABEL + column * step + 1}" '
                f'y="{layer * height + 1}" width="{step - 2}" height="{height - 2}" rx="3" '
                f'fill-opacity="{0.05 + 0.75 * shade:.3f}"/></g>'
            )
    every = -(-18 // height)  # labels need about 18 pixels
    labels = [
        text_at(LABEL - 10, (layer + 0.5) * height, f"layer {layer}", "end")
        for layer in range(0, rows, every)
    ]
    axis = _axis(range(1, table.shape[1] + 1), step, rows * height + AXIS / 2 + 2)
    picture = [*cells, *labels, *axis]
    return svg(LABEL + table.shape[1] * step, rows * height + AXIS, "Attention selectivity", picture)


def staircase(tokens: Table, sizes: Sequence[tuple[int, int]], drafters: Collection[tuple[int, int]]) -> str:
    """Tokens that a layer may carry into each map: all there are, what a drafter keeps, what a refiner keeps.

    Args:
        tokens: `[layer][map]`.
        sizes: (height, width) of every map.
        drafters: (layer, map) pairs.
    """
    prefix = [0, *accumulate(height * width for height, width in sizes)][1 : len(sizes)]
    step = _step(len(prefix))
    bars = []
    for column, whole in enumerate(prefix):
        k = column + 1
        parts = [("all tokens so far", "dense", whole, 0.76)]
        for name, kind, width in (("drafter", "draft", 0.6), ("refiner", "stored", 0.36)):
            kept = [
                row[k] for layer, row in enumerate(tokens) if ((layer, k) in drafters) == (name == "drafter")
            ]
            parts += [(name, kind, max(kept), width)] if kept else []
        shapes = "".join(
            _bar(kind, column, step, value / prefix[-1], width) for _, kind, value, width in parts
        )
        title = f"into map {k}: " + ", ".join(f"{name} {value:,}" for name, _, value, _ in parts)
        bars.append(f"<g><title>{escape(title)}</title>{shapes}</g>")
    ends = [text_at(LABEL - 10, TOP, f"{prefix[-1]:,}", "end"), text_at(LABEL - 10, TOP + CHART, "0", "end")]
    axis = _axis(range(1, len(prefix) + 1), step, TOP + CHART + AXIS / 2 + 2)
    return svg(
        LABEL + len(prefix) * step, TOP + CHART + AXIS, "Tokens carried into each map", [*bars, *ends, *axis]
    )


def _bar(kind: str, column: int, step: int, share: float, width: float) -> str:
    x, tall = LABEL + (column + (1 - width) / 2) * step, CHART * share
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{TOP + CHART - tall:.1f}" width="{width * step:.1f}" '
        f'height="{tall:.1f}" rx="2"/>'
    )


def _axis(maps: Sequence[int], step: int, y: float) -> list[str]:
    return [text_at(LABEL + (column + 0.5) * step, y, str(k), "middle") for column, k in enumerate(maps)]


def _step(maps: int) -> int:
    return min(48, (SMALL - LABEL) // max(maps, 1))
