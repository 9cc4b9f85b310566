"""What the table of a Comparison says, once, for the terminal and for the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modicum.evaluate import Comparison, Spread
from modicum.report.units import DASH, NOT_MEASURED, byte_size, number, percent, ratio, relative_change

Verdict = Literal["better", "worse", "same", ""]


@dataclass(frozen=True)
class Value:
    """A number as text, with its spread over rounds if it has one, and exactly (None: not measured)."""

    text: str
    spread: str = ""
    exact: float | None = None


@dataclass(frozen=True)
class Row:
    """One measured quantity. `change` and `verdict` are empty where there is nothing to compare."""

    label: str
    unit: str
    before: Value
    after: Value
    change: Value
    verdict: Verdict


PEAK_RESOLUTION = 0.02  # what the peak of one and the same model varies by from run to run
MISSING = Value(NOT_MEASURED)
NOTHING = Value("")


def comparison_rows(comparison: Comparison) -> list[Row]:
    """The rows of the headline table; every quantity has its row, measured or not."""
    before, after = comparison.before, comparison.after
    return [
        _less_is_better("Perplexity", "", before.perplexity, after.perplexity),
        _less_is_better("On disk", "weights", before.disk_bytes, after.disk_bytes, sized=True),
        _less_is_better("In memory", "weights", before.memory_bytes, after.memory_bytes, sized=True),
        _less_is_better(
            "Peak memory", "generating", before.peak_bytes, after.peak_bytes, True, PEAK_RESOLUTION
        ),
        _speed("Prefill", before.prefill, after.prefill, comparison.prefill_ratio),
        _speed("Decode", before.decode, after.decode, comparison.decode_ratio),
        *_agreement_rows(comparison),
        *_coding_rows(comparison),
    ]


def headline(comparison: Comparison) -> str:
    """The measured result in one sentence, e.g. "45 % of the bytes for 1.08x the perplexity"."""
    size, cost = size_phrase(comparison), _cost_phrase(comparison)
    if size and comparison.coding is not None and comparison.coding.identical:
        return f"{size}, every bit the same"
    if size and cost:
        return f"{size} for {cost}"
    return (size or cost or "Nothing was measured").replace("the same", "The same", 1)


def size_phrase(comparison: Comparison) -> str | None:
    """The bytes after as a share of those before: on disk, or in memory where the disk was not measured."""
    for field, noun in (("disk_bytes", "bytes"), ("memory_bytes", "memory")):
        before, after = getattr(comparison.before, field), getattr(comparison.after, field)
        if before and after is not None:
            return f"{after / before:.0%} of the {noun}".replace("%", " %")
    return None


def _cost_phrase(comparison: Comparison) -> str | None:
    before, after = comparison.before.perplexity, comparison.after.perplexity
    if before is None or after is None:
        return None
    return "the same perplexity" if after == before else f"{ratio(after / before)} the perplexity"


def _less_is_better(
    label: str,
    unit: str,
    before: float | None,
    after: float | None,
    sized: bool = False,
    resolution: float = 0.0,
) -> Row:
    """A row whose change is called one only if it exceeds `resolution`, as a share of what was before."""
    texts = [_plain(each, sized) for each in (before, after)]
    change = NOTHING
    verdict: Verdict = ""
    if before and after is not None:
        change = Value(relative_change(before, after), exact=after / before)
        same = abs(after - before) <= resolution * before
        verdict = "same" if same else "better" if after < before else "worse"
    return Row(label, unit, texts[0], texts[1], change, verdict)


def _plain(value: float | None, sized: bool) -> Value:
    if value is None:
        return MISSING
    return Value(byte_size(value) if sized else number(value, 4), exact=value)


def _speed(label: str, before: Spread | None, after: Spread | None, change: Spread | None) -> Row:
    """A speed counts as changed only where every round said so."""
    verdict: Verdict = ""
    if change is not None:
        verdict = "better" if change.lowest > 1 else "worse" if change.highest < 1 else "same"
    return Row(label, "tokens/s", _spread(before), _spread(after), _spread(change, factor=True), verdict)


def _spread(spread: Spread | None, factor: bool = False) -> Value:
    if spread is None:
        return NOTHING if factor else MISSING
    write = ratio if factor else number
    return Value(write(spread.median), f"{write(spread.lowest)}{DASH}{write(spread.highest)}", spread.median)


def _agreement_rows(comparison: Comparison) -> list[Row]:
    found = comparison.agreement
    kl = MISSING if found is None else Value(number(found.kl), exact=found.kl)
    rows = [Row("KL divergence", "nats/token", Value("reference"), kl, NOTHING, "")]
    for k, share in (found.overlap if found else {1: None}).items():
        label = "Same top token" if k == 1 else f"Same top {k}"
        value = MISSING if share is None else Value(percent(share), exact=share)
        rows.append(
            Row(label, "of positions" if k == 1 else "overlap", Value("reference"), value, NOTHING, "")
        )
    return rows


def _coding_rows(comparison: Comparison) -> list[Row]:
    """Bits per coded weight, and the bound beside them."""
    coding = comparison.coding
    if coding is None:
        return []
    before, after = (8 * size / coding.weights for size in (coding.dense_nbytes, coding.nbytes))
    bits = _less_is_better("Bits per weight", "coded", before, after)
    bound = Value(number(coding.bound, 4), exact=coding.bound)
    return [bits, Row("Bound", "bits, by entropy", NOTHING, bound, NOTHING, "")]
