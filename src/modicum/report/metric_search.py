"""The report of a search for a pruning metric: a page with pictures, and the numbers as JSON."""

from __future__ import annotations

from html import escape
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from modicum.report.evolution_sections import lineage, made, measurement, progress
from modicum.report.html import fill, resource, write_page
from modicum.report.metric_search_figures import pareto
from modicum.report.parts import figure, section, tile
from modicum.report.units import number, percent
from modicum.search.found import MetricSearch, Named

COLUMNS = ("Metric", "Parts", "On the search's text", "On text never seen", "× dense")


def write_search_report(found: MetricSearch, directory: str | Path) -> Path:
    """Writes report.html and report.json into `directory`, each under a temporary name first.

    Args:
        found: the finished search.
        directory: made if it is missing; reports in it are replaced.

    Returns:
        The path of the page.
    """
    return write_page(found, render(found), Path(directory))


def headline(found: MetricSearch) -> str:
    """Whether the search was worth it, judged by the text that it never saw."""
    own = found.found
    other = min(found.metrics[1:], key=lambda each: each.held_out)
    values = f"perplexity {number(own.held_out, 4)} against {number(other.held_out, 4)}"
    if own.held_out < other.held_out:
        return f"Better than the best published metric ({other.name}) on unseen text: {values}"
    return f"Not better than {other.name} on unseen text: {values}"


def render(found: MetricSearch) -> str:
    """The page as text."""
    asked = found.settings
    return fill(
        "template.html",
        images="",
        style=resource("style.css"),
        name=escape(f"Search for a pruning metric, {found.model} at {percent(asked.sparsity, 2)}"),
        headline=escape(headline(found)),
        lead=f"<code>{escape(found.found.formula)}</code>",
        tiles=_tiles(found),
        body=fill(
            "metric_search.html",
            table=_table(found),
            use=_use(found),
            progress=progress(found),
            pareto=_pareto(found),
            lineage=lineage(found),
            made=made(found),
            measurement=measurement(found, {**asked.model_dump(), "starts": asked.starts or "none"}),
        ),
    )


def search_table(found: MetricSearch) -> Table:
    """A rich table with one row per metric, and the headline on top."""
    table = Table(
        title=headline(found),
        title_style="bold",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for title in ("metric", "parts", "perplexity\nsearch", "perplexity\nunseen", "× dense\nunseen"):
        table.add_column(title, justify="left" if title == "metric" else "right", no_wrap=True)
    dense = (number(found.dense, 4), number(found.dense_held_out, 4), "1")
    for metric in found.metrics:
        table.add_row(*map(Text, _cells(metric, found)))
    table.add_row("dense", "", *dense, style="dim")
    return table


def _cells(metric: Named, found: MetricSearch) -> tuple[str, ...]:
    share = metric.held_out / found.dense_held_out
    return (
        metric.name,
        str(metric.size),
        number(metric.fitness, 4),
        number(metric.held_out, 4),
        f"{share:.3f}",
    )


def _tiles(found: MetricSearch) -> str:
    own = found.found
    return "".join(
        [
            tile(f"{len(found.entries):,}", "formulas tried"),
            tile(f"{found.draws:,}", "formulas drawn"),
            tile(number(own.fitness, 4), f"perplexity, dense {number(found.dense, 4)}"),
            tile(number(own.held_out, 4), f"on unseen text, dense {number(found.dense_held_out, 4)}"),
            tile(str(own.size), "parts of the formula"),
        ]
    )


def _table(found: MetricSearch) -> str:
    heads = "".join(f'<th scope="col">{title}</th>' for title in COLUMNS[1:])
    lowest = min(metric.held_out for metric in found.metrics)
    rows = "".join(_row(metric, found, metric.held_out == lowest) for metric in found.metrics)
    unseen = (
        "Perplexities after one-shot pruning, nothing trained afterwards. The found metric was chosen for the text of "
        "the search, where it has an advantage over the others; only the text that the search never saw compares them "
        "fairly, and differences there depend on the text as well."
    )
    return (
        f'<div class="scroll"><table class="policies"><thead><tr><td></td>{heads}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div><p class="note">{unseen}</p>'
    )


def _row(metric: Named, found: MetricSearch, best: bool) -> str:
    name, *cells = _cells(metric, found)
    kinds = ["", "", "better" if best else "", ""]
    written = "".join(
        f'<td class="{kind}"><data value="{text}">{escape(text)}</data></td>'
        for kind, text in zip(kinds, cells, strict=True)
    )
    formula = "" if len(metric.formula) > 60 else f"<small>{escape(metric.formula)}</small>"
    return f'<tr><th scope="row">{escape(name)} {formula}</th>{written}</tr>'


def _use(found: MetricSearch) -> str:
    asked = found.settings
    command = (
        f"modicum compress MODEL --method prune.pruner_zero --set sparsity={asked.sparsity:g} \\\n"
        f'    --set metric="{found.found.formula}" --out small'
    )
    return f"<pre>{escape(command)}</pre>"


def _pareto(found: MetricSearch) -> str:
    key = '<span class="key"><i class="gain"></i>a candidate<i class="cost"></i>published</span>'
    picture = figure("Perplexity and size of the formula", pareto(found), key)
    note = "The line joins the candidates that nothing smaller beats."
    return section("What size buys", f'{picture}<p class="note">{note}</p>')
