"""Why weights shrink without loss, as inline SVG: how few exponents occur, and what becomes of the bits of a weight."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from math import ceil

from modicum.evaluate import CodingRecord
from modicum.report.curves import AXIS, HEAD, HEIGHT, LABEL, value_grid
from modicum.report.svg import SMALL, svg, text_at
from modicum.report.units import number, percent

RARE = 1e-4
"""Values at either end that together are a smaller share of all weights are left out of the picture."""

TICK = 46  # pixels that the name of a power of two needs
ROW, BAR = 52, 26  # pixels: one row of bits, and the bar in it
BIASES = {"bfloat16": (127, 0), "float32": (127, 0), "float16": (15, 3)}
"""Of the exponent, and how many bits of the mantissa lie in the coded byte below it."""

KINDS = {"exponents": "stored", "other bits": "dense", "tables": "cost"}
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def exponent_histogram(coding: CodingRecord) -> str:
    """One column per value of the coded byte, as high as it is frequent; zeros stand apart at the left."""
    total = sum(coding.counts)
    shown, zeros = shown_values(coding), coding.counts[0] / total
    full = max(max(coding.counts[value] for value in shown) / total, zeros)
    first = LABEL + 12 + (zeros > RARE) * 24
    step, right = (SMALL - 12 - first) / len(shown), SMALL - 12
    columns = [
        _column(first + place * step, step, coding.counts[value] / total, full, _range(coding.dtype, value))
        for place, value in enumerate(shown)
    ]
    labels = list(_powers(coding.dtype, shown, first, step))
    if zeros > RARE:
        columns.insert(0, _column(LABEL + 8, 14, zeros, full, "0 and the smallest values"))
        labels.insert(0, text_at(LABEL + 15, HEAD + HEIGHT + AXIS / 2, "0", "middle"))
    label = f"How often each exponent occurs among {total:,} weights, {number(coding.information)} of 8 bits"
    grid = value_grid(full, right, percent_of)
    return svg(SMALL, HEAD + HEIGHT + AXIS, label, [*grid, *columns, *labels])


def bits_chart(coding: CodingRecord) -> str:
    """The bits of a weight before and after coding, and at best, below each other and to one scale."""
    width = 8 * coding.dense_nbytes / coding.weights
    known = coding.information
    rows = [
        ("original", [("exponents", 8.0), ("other bits", width - 8)]),
        ("stored", [(part, 8 * size / coding.weights) for part, size in coding.parts.items()]),
        ("bound", [("exponents", known), ("other bits", max(0.0, coding.bound - known))]),
    ]
    parts = [piece for place, (name, bits) in enumerate(rows) for piece in _bits(name, bits, place, width)]
    return svg(SMALL, ROW * len(rows), "Bits of a weight: original, stored, and at best", parts)


def shown_values(coding: CodingRecord) -> range:
    """The values of the coded byte between rare ones at both ends; zero belongs to the column at the left."""
    used = [value for value, count in enumerate(coding.counts) if count and value] or [0]
    least = RARE * sum(coding.counts[value] for value in used)
    low, high = used[0], used[-1]
    while sum(coding.counts[used[0] : low + 1]) < least:
        low += 1
    while sum(coding.counts[high : used[-1] + 1]) < least:
        high -= 1
    return range(low, high + 1)


def percent_of(share: float) -> str:
    """A share as an axis writes it."""
    return percent(share, 2)


def _column(x: float, step: float, share: float, full: float, name: str) -> str:
    tall = HEIGHT * share / full
    title = escape(f"{name}: {percent(share)}")
    shape = f'x="{x + 0.08 * step:.1f}" y="{HEAD + HEIGHT - tall:.1f}" width="{0.84 * step:.1f}" height="{tall:.1f}"'
    return f'<g><title>{title}</title><rect class="stored" {shape} rx="1"/></g>'


def _powers(dtype: str, shown: range, first: float, step: float) -> Iterator[str]:
    """Powers of two below the columns that begin with them, as many as there is room for."""
    bias, mantissa = BIASES[dtype]
    every = max(1, ceil(TICK / (step * 2**mantissa)))
    for place, value in enumerate(shown):
        power = (value >> mantissa) - bias
        if value % 2**mantissa == 0 and power % every == 0:
            yield text_at(first + (place + 0.5) * step, HEAD + HEIGHT + AXIS / 2, _power(power), "middle")


def _range(dtype: str, value: int) -> str:
    """The magnitudes of all weights that have one value of the coded byte."""
    bias, mantissa = BIASES[dtype]
    power, part = (value >> mantissa) - bias, value % 2**mantissa
    if not mantissa:
        return f"{_power(power)} to {_power(power + 1)}"
    return f"{1 + part / 2**mantissa:g} to {1 + (part + 1) / 2**mantissa:g} times {_power(power)}"


def _power(power: int) -> str:
    return "2" + str(power).translate(SUPERSCRIPTS)


def _bits(name: str, bits: list[tuple[str, float]], place: int, width: float) -> Iterator[str]:
    """One row: its name and sum, and a bar of its parts, each with its bits if there is room."""
    top, scale = place * ROW + (ROW - BAR) / 2, (SMALL - LABEL - 74) / width
    yield text_at(LABEL - 8, top + BAR / 2, name, "end")
    x = float(LABEL)
    for part, size in bits:
        title = escape(f"{name}, {part}: {number(size)} bits")
        shape = f'x="{x:.1f}" y="{top}" width="{max(0.5, size * scale - 1):.1f}" height="{BAR}"'
        text = number(size, 2 if size < 8 else 3) if size * scale > 30 else ""
        inked = (
            text_at(x + size * scale / 2, top + BAR / 2, text, "middle", f"on-{KINDS[part]}") if text else ""
        )
        yield f'<g><title>{title}</title><rect class="{KINDS[part]}" {shape} rx="2"/>{inked}</g>'
        x += size * scale
    total = sum(size for _, size in bits)
    yield text_at(x + 8, top + BAR / 2, f"{total:.2f} bits", "start", "value")
