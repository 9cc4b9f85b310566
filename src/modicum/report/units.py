"""Numbers as people read them; a missing one is always "not measured", never a zero or a dash."""

from __future__ import annotations

from math import floor, isfinite, log10

NOT_MEASURED = "not measured"
MINUS, TIMES, DASH = "\u2212", "\u00d7", "\u2013"


def number(value: float, digits: int = 3) -> str:
    """`value` to `digits` significant digits, thousands grouped; very small ones in powers of ten."""
    if value == 0 or not isfinite(value):
        return f"{value:g}"
    magnitude = floor(log10(abs(value)))
    if magnitude < -4:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def byte_size(value: float) -> str:
    """Bytes in decimal units, as disks are sold: 1 kB = 1000 B."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{number(value / scale)} {unit}"
    return f"{value:.0f} B"


def percent(share: float, digits: int = 3) -> str:
    """A share of 1 in percent; 100 % and 0 % are only said of exactly that."""
    for more in range(4):
        text = number(100 * share, digits + more)
        if float(text.replace(",", "")) != 100 or share == 1:
            break
    return f"{text} %"


def ratio(value: float) -> str:
    """A factor such as 1.08x; close to 1 with as many digits as it takes to differ from it."""
    digits = next((d for d in (2, 3, 4) if round(value, d) != 1), 2)
    return f"{value:,.{digits}f}{TIMES}" if 0.1 <= value < 100 or not value else f"{number(value)}{TIMES}"


def relative_change(before: float, after: float) -> str:
    """The change in percent with its sign, e.g. -55.0 %."""
    if after == before:
        return "unchanged"
    change = after / before - 1
    text = f"{abs(100 * change):,.1f}" if abs(change) >= 0.001 else number(abs(100 * change), 1)
    return f"{MINUS if change < 0 else '+'}{text} %"
