"""The part of the page about weights that are coded without loss; "" leaves it out."""

from __future__ import annotations

from html import escape

from modicum.evaluate import CodingRecord
from modicum.report.coding_figures import bits_chart, exponent_histogram, shown_values
from modicum.report.parts import figure, section
from modicum.report.units import DASH, byte_size, number, percent

FEW = 12  # groups up to which their table stands open
EXPLAINED = (
    "Every weight is a sign, an exponent and a mantissa. Few exponents occur, and they get short codes; sign and "
    "mantissa of trained weights are noise. The bound is the entropy of all bytes of a weight: no code for single "
    "bytes gets below it."
)

REPEATED = 0.9  # share of their bits that sign and mantissa carry at most if they are called repetitive
REPEATS = (
    "Here they repeat as well, as those of zeros and of coarse grids do: lossless.dfloat11 leaves them as they are, "
    "lossless.byteplanes does not."
)


def coding(found: CodingRecord | None) -> str:
    """Whether every bit came back, why the weights shrink, and by how much in every group."""
    if found is None:
        return ""
    figures = [
        figure("Bits of a weight", bits_chart(found), _key(found)),
        figure(_subject(found), exponent_histogram(found), _carried(found)),
    ]
    pictures = f'<div class="figures pair">{"".join(figures)}</div>'
    return section(
        "Stored without loss",
        f'{_verdict(found)}{pictures}<p class="note">{escape(" ".join(_notes(found)))}</p>{_table(found)}',
    )


def _verdict(found: CodingRecord) -> str:
    if found.changed_by:
        steps = ", ".join(dict.fromkeys(found.changed_by))
        return (
            f'<p class="verdict">Weights as {escape(steps)} left them, coded by {escape(found.method)}.</p>'
        )
    if found.identical:
        words = f"Every bit is that of the original: {found.tensors:,} tensors compared."
        return f'<p class="verdict same-bits">{words}</p>'
    return f'<p class="verdict other-bits">Not the original: {escape(found.difference or "")}.</p>'


def _key(found: CodingRecord) -> str:
    tables = '<i class="cost"></i>tables' if "tables" in found.parts else ""
    first = "exponent and three bits" if found.dtype == "float16" else "exponent"
    return f'<span class="key"><i class="stored"></i>{first}<i class="dense"></i>other bits{tables}</span>'


def _subject(found: CodingRecord) -> str:
    return "Exponents and three bits" if found.dtype == "float16" else "Exponents that occur"


def _carried(found: CodingRecord) -> str:
    return f'<span class="key">they carry {number(found.information)} of 8 bits</span>'


def _notes(found: CodingRecord) -> list[str]:
    shown = shown_values(found)
    rare = sum(1 for value, count in enumerate(found.counts) if count and value and value not in shown)
    notes = [EXPLAINED]
    uncoded = 8 * found.dense_nbytes / found.weights - 8
    if found.method == "lossless.dfloat11" and found.bound - found.information < REPEATED * uncoded:
        notes.append(REPEATS)
    if rare:
        notes.append(f"{rare} rare exponents are left out of the picture.")
    if found.decode is not None:
        rates = [f"{number(rate / 1e9)}" for rate in (found.decode.lowest, found.decode.highest)]
        threads = "one thread" if found.threads == 1 else f"{found.threads} threads"
        notes.append(
            f"Decoding on the processor that wrote this report, by {threads}: "
            f"{number(found.decode.median / 1e9)} GB of weights a second ({DASH.join(rates)} over the groups), "
            "reading included."
        )
    return notes


def _table(found: CodingRecord) -> str:
    rows = "".join(
        _row(each.name, each.weights, each.nbytes, each.dense_nbytes, each.bound) for each in found.groups
    )
    rows += "".join(
        f'<tr><th scope="row">{escape(name)}</th><td colspan="6" class="missing">as it is: {escape(why)}</td></tr>'
        for name, why in found.raw.items()
    )
    total = _row("all", found.weights, found.nbytes, found.dense_nbytes, found.bound)
    heads = ("Coded together", "Weights", "Original", "Stored", "", "Bits per weight", "Bound")
    head = "".join(f'<th scope="col">{head}</th>' for head in heads)
    opened = " open" if len(found.groups) <= FEW else ""
    return (
        f"<details{opened}><summary>All {len(found.groups)} groups as a table</summary>"
        f'<div class="scroll"><table class="layers"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody><tfoot>{total}</tfoot></table></div></details>"
    )


def _row(name: str, weights: int, nbytes: int, dense: int, bound: float) -> str:
    cells = (
        f"{weights:,}", byte_size(dense), byte_size(nbytes), percent(nbytes / dense),
        number(8 * nbytes / weights, 4), number(bound, 4),
    )  # fmt: skip
    return (
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(text)}</td>" for text in cells)}</tr>'
    )
