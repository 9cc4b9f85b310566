"""What the table of a DepthComparison says, once, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from modicum.evaluate.depth_comparison import DepthComparison, DepthEntry
from modicum.report.rows import MISSING, Value
from modicum.report.units import DASH, NOT_MEASURED, byte_size, number, percent, ratio


@dataclass(frozen=True)
class Column:
    """One measured quantity of every model.

    Attributes:
        title: of the column.
        unit: under the title.
        read: its value for a model, given the original.
    """

    title: str
    unit: str
    read: Callable[[DepthEntry, DepthEntry], Value]


def columns(comparison: DepthComparison) -> list[Column]:
    """The columns in which anything was measured."""
    judged = [Column("Accuracy", "judged", _accuracy), Column("Frechet", "distance", _frechet)]
    return [
        *([Column("Under", "", _policies)] if any(entry.policies for entry in comparison.entries) else []),
        Column("Blocks", "", lambda entry, first: Value(str(entry.blocks), exact=entry.blocks)),
        Column("Weights", "", _parameters),
        Column("On disk", "", _disk),
        *(judged if comparison.entries[0].frechet is not None else []),
        Column("Per image", "seconds", _seconds),
        Column("Time", "of first", _time),
    ]


def headline(comparison: DepthComparison) -> str:
    """The measured result of the last model in one sentence."""
    first, last = comparison.entries[0], comparison.entries[-1]
    share, what = size_share(last, first)
    size = f"{percent(share, 2)} {what}, {ratio(last.seconds_ratio.median)} the time"
    if first.frechet is None or last.frechet is None:
        return size
    return f"{size}, Frechet distance {number(last.frechet)} instead of {number(first.frechet)}"


def size_share(entry: DepthEntry, first: DepthEntry) -> tuple[float, str]:
    """How large a model is beside the original, and in what: parameters, or bytes where it has as many of those."""
    if entry.parameters == first.parameters:
        return entry.disk_bytes / first.disk_bytes, "of the bytes"
    return share_of(entry, first), "of the parameters"


def share_of(entry: DepthEntry, first: DepthEntry) -> float:
    """Parameters of a model over those of the original."""
    return entry.parameters / first.parameters


def number_of(value: float | None) -> str:
    """A number, or that it was not measured."""
    return NOT_MEASURED if value is None else number(value)


def _policies(entry: DepthEntry, first: DepthEntry) -> Value:
    return Value(", ".join(entry.policies) or "no policy")


def _parameters(entry: DepthEntry, first: DepthEntry) -> Value:
    spread = "" if entry is first else percent(share_of(entry, first))
    return Value(f"{entry.parameters:,}", spread, entry.parameters)


def _disk(entry: DepthEntry, first: DepthEntry) -> Value:
    spread = "" if entry is first else percent(entry.disk_bytes / first.disk_bytes)
    return Value(byte_size(entry.disk_bytes), spread, entry.disk_bytes)


def _accuracy(entry: DepthEntry, first: DepthEntry) -> Value:
    return MISSING if entry.accuracy is None else Value(percent(entry.accuracy), exact=entry.accuracy)


def _frechet(entry: DepthEntry, first: DepthEntry) -> Value:
    return MISSING if entry.frechet is None else Value(number(entry.frechet), exact=entry.frechet)


def _seconds(entry: DepthEntry, first: DepthEntry) -> Value:
    return Value(number(entry.seconds.median), exact=entry.seconds.median)


def _time(entry: DepthEntry, first: DepthEntry) -> Value:
    found = entry.seconds_ratio
    spread = "" if entry is first else f"{found.lowest:.2f}{DASH}{found.highest:.2f}"
    return Value(ratio(found.median), spread, found.median)
