"""What the table of a CacheComparison says, once, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from modicum.evaluate.cache_comparison import CacheComparison, CacheEntry
from modicum.report.rows import MISSING, Value
from modicum.report.units import DASH, byte_size, number, percent, ratio


@dataclass(frozen=True)
class Column:
    """One measured quantity of every entry.

    Attributes:
        title: of the column.
        unit: under the title.
        read: its value for an entry, given the full cache's entry.
        best: which end is good, for the mark of the best at a budget; "" for none.
    """

    title: str
    unit: str
    read: Callable[[CacheEntry, CacheEntry], Value]
    best: Literal["highest", "lowest", ""] = ""


def columns(comparison: CacheComparison) -> list[Column]:
    """The columns in which anything was measured."""
    found = [
        Column("Cache", "kept", partial(_bytes, "carried_bytes")),
        Column("Cache", "at peak", partial(_bytes, "peak_bytes")),
        Column("PSNR", "dB", partial(_quality, "psnr"), "highest"),
        Column("SSIM", "", partial(_quality, "ssim"), "highest"),
        Column("LPIPS", "", partial(_quality, "lpips"), "lowest"),
        Column("Frechet", "distance", partial(_quality, "frechet"), "lowest"),
        Column("Time", "of full", _time),
    ]
    full = comparison.entries[0]
    return [
        column
        for column in found
        if not column.best or any(column.read(each, full).exact is not None for each in comparison.entries)
    ]


def left_out(comparison: CacheComparison) -> list[str]:
    """Titles of the quantities that were not measured for any entry."""
    shown = {column.title for column in columns(comparison)}
    return [title for title in ("PSNR", "SSIM", "LPIPS", "Frechet") if title not in shown]


def best_at_budget(comparison: CacheComparison, column: Column, entry: CacheEntry) -> bool:
    """Whether no policy of the same budget is better, and there is one to compare with."""
    full = comparison.entries[0]
    rivals = [each for each in comparison.entries[1:] if each.budget == entry.budget]
    values = {each.policy: column.read(each, full).exact for each in rivals}
    known = [value for value in values.values() if value is not None]
    if not column.best or entry is full or len(known) < 2 or len(set(known)) < 2:
        return False
    return values[entry.policy] == (max(known) if column.best == "highest" else min(known))


def champion(comparison: CacheComparison) -> CacheEntry | None:
    """The entry of the headline: the closest images at the middle one of the budgets; None if there is but full."""
    rest = comparison.entries[1:]
    if not rest:
        return None
    budgets = list(dict.fromkeys(entry.budget for entry in rest))
    middle = [entry for entry in rest if entry.budget == budgets[len(budgets) // 2]]
    return max(middle, key=lambda entry: entry.psnr or 0.0)


def headline(comparison: CacheComparison) -> str:
    """The measured result in one sentence, e.g. "scalekv: 10 % of the cache, images at 24.1 dB"."""
    best = champion(comparison)
    if best is None:
        return "The full cache alone"
    share = percent(best.carried_bytes / comparison.entries[0].carried_bytes)
    return f"{best.policy}: {share} of the cache, images at {decibel(best.psnr)}"


def decibel(value: float | None) -> str:
    """A PSNR as people read it."""
    if value is None:
        return MISSING.text
    return "∞ dB, identical" if value == float("inf") else f"{value:.1f} dB"


def _bytes(field: str, entry: CacheEntry, full: CacheEntry) -> Value:
    value, whole = getattr(entry, field), getattr(full, field)
    return Value(byte_size(value), "" if entry is full else percent(value / whole), value)


def _quality(field: str, entry: CacheEntry, full: CacheEntry) -> Value:
    value = getattr(entry, field)
    if entry is full:
        return Value("reference")
    if value is None:
        return MISSING
    return Value("identical" if value == float("inf") else number(value, 3), exact=value)


def _time(entry: CacheEntry, full: CacheEntry) -> Value:
    spread = entry.seconds_ratio
    text = f"{spread.lowest:.2f}{DASH}{spread.highest:.2f}"
    return Value(ratio(spread.median), "" if entry is full else text, spread.median)
