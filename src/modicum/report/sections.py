"""The parts of the page, each a function from a Comparison to escaped HTML; "" leaves the part out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from html import escape
from typing import Any

import yaml

from modicum.evaluate import Comparison, LayerRecord, Sample
from modicum.report.figures import QUANTITIES, colour_scale, heat_map, size_chart
from modicum.report.parts import cell, facts, figure, section, tile
from modicum.report.rows import Row, comparison_rows
from modicum.report.units import NOT_MEASURED, byte_size, number, percent, ratio

_PHRASE = re.compile(r"\S(?:[^\n]*\S)?")  # the inked part of a line; indentation is not worth marking


def lead(comparison: Comparison) -> str:
    """What was measured on, in one line under the headline."""
    facts = [comparison.data, f"{comparison.tokens:,} tokens" if comparison.tokens else ""]
    facts.append(str(comparison.environment.get("date", ""))[:10])
    return "&nbsp;&middot; ".join(escape(fact) for fact in facts if fact)


def tiles(comparison: Comparison) -> str:
    """The few numbers to remember, as large figures; only those that were measured."""
    found: list[tuple[str, str, str]] = []
    for field, label in (("disk_bytes", "of bytes on disk"), ("memory_bytes", "of bytes in memory")):
        before, after = getattr(comparison.before, field), getattr(comparison.after, field)
        if before and after is not None:
            found.append((percent(after / before), label, ""))
    if comparison.before.perplexity and comparison.after.perplexity is not None:
        found.append(
            (ratio(comparison.after.perplexity / comparison.before.perplexity), "the perplexity", "")
        )
    if comparison.agreement and comparison.agreement.top1 is not None:
        found.append((percent(comparison.agreement.top1), "same next token", ""))
    for change, label in ((comparison.prefill_ratio, "prefill"), (comparison.decode_ratio, "decode")):
        if change:
            noise = change.lowest <= 1 <= change.highest
            note = ", within noise" if noise else ""
            found.append((ratio(change.median), f"{label} speed{note}", "soft" if noise else ""))
    return "".join(tile(*each) for each in found)


def table(comparison: Comparison) -> str:
    """The rows of the headline table."""
    return "\n".join(_table_row(row) for row in comparison_rows(comparison))


def layers(comparison: Comparison) -> str:
    """Heat maps, the size of the blocks, and all layers as a table that folds out."""
    if not comparison.layers:
        return ""
    figures = []
    for quantity in QUANTITIES:
        picture = heat_map(comparison.layers, quantity)
        if picture is None:
            figures.append(f'<p class="missing">{escape(quantity.title)}: {NOT_MEASURED}.</p>')
            continue
        low, high = colour_scale(comparison.layers, quantity)
        scale = f'<span class="scale {quantity.colour}">{escape(low)}<i></i>{escape(high)}</span>'
        figures.append(figure(quantity.title, picture, scale))
    if sizes := size_chart(comparison.layers):
        key = '<span class="key"><i class="stored"></i>stored<i class="dense"></i>original</span>'
        figures.append(figure("Bytes by block", sizes, key))
    grid = f'<div class="figures">{"".join(figures)}</div>'
    return section("Where it happened", grid + _layer_table(comparison.layers))


def samples(comparison: Comparison) -> str:
    """Texts of both models side by side, with the words that differ marked."""
    if not comparison.samples:
        return ""
    return section("What it writes", "".join(_sample(sample) for sample in comparison.samples))


def recipe(comparison: Comparison) -> str:
    """The recipe and the command that repeats it."""
    parts = []
    if comparison.recipe is not None:
        text = yaml.safe_dump(comparison.recipe, sort_keys=False, allow_unicode=True).strip()
        parts.append(f"<pre>{escape(text)}</pre>")
    if comparison.command is not None:
        parts.append(f"<p>Repeat it with</p><pre>{escape(comparison.command)}</pre>")
    return section("How it was made", "".join(parts)) if parts else ""


def measurement(comparison: Comparison) -> str:
    """Protocol and environment as two lists."""
    protocol: dict[str, Any] = {"data": comparison.data or None, "tokens": comparison.tokens or None}
    if comparison.protocol is not None:
        protocol |= comparison.protocol.model_dump()
        protocol["stride"] = protocol["stride"] or "window"
    protocol["seed"] = comparison.seed
    return facts("Protocol", protocol) + facts("Environment", comparison.environment)


def _table_row(row: Row) -> str:
    unit = f"<small>{escape(row.unit)}</small>" if row.unit else ""
    return (
        f'<tr><th scope="row">{escape(row.label)} {unit}</th><td>{cell(row.before)}</td>'
        f'<td>{cell(row.after)}</td><td class="change {row.verdict}">{cell(row.change)}</td></tr>'
    )


def _sample(sample: Sample) -> str:
    before, after = _marked(sample.before, sample.after)
    prompt = f'<span class="prompt">{escape(sample.prompt)}</span>'
    return (
        f'<div class="sample"><div><h4>Before</h4><p>{prompt}{before}</p></div>'
        f"<div><h4>After</h4><p>{prompt}{after}</p></div></div>"
    )


def _marked(before: str, after: str) -> tuple[str, str]:
    """Both texts escaped, the words that only one of them has in <mark>."""
    words: list[list[str]] = [re.findall(r"\s*\S+|\s+$", text) for text in (before, after)]
    sides: tuple[list[str], list[str]] = ([], [])
    for kind, *ranges in difflib.SequenceMatcher(None, words[0], words[1], autojunk=False).get_opcodes():
        for side, own, start, end in zip(sides, words, ranges[::2], ranges[1::2], strict=True):
            text = escape("".join(own[start:end]))
            side.append(text if kind == "equal" else _PHRASE.sub(r"<mark>\g<0></mark>", text))
    return "".join(sides[0]), "".join(sides[1])


def _layer_table(records: Iterable[LayerRecord]) -> str:
    def written(value: float | None, write: Any) -> str:
        return (
            f"<td>{escape(write(value))}</td>"
            if value is not None
            else f'<td class="missing">{NOT_MEASURED}</td>'
        )

    rows = "".join(
        f'<tr><th scope="row">{escape(each.name)}</th>{written(each.sparsity, percent)}'
        f"{written(each.bits_per_weight, number)}{written(each.relative_error, number)}"
        f"{written(each.nbytes, byte_size)}{written(each.dense_nbytes, byte_size)}</tr>"
        for each in records
    )
    heads = ("Layer", "Sparsity", "Bits per weight", "Relative error", "Stored", "Original")
    head = "".join(f'<th scope="col">{head}</th>' for head in heads)
    return (
        "<details><summary>All layers as a table</summary>"
        f'<div class="scroll"><table class="layers"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details>"
    )
