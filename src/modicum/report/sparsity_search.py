"""The report of a search for a sparsity per block: a page with pictures, and the numbers as JSON."""

from __future__ import annotations

from html import escape
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from modicum.report.evolution_sections import lineage, made, measurement, progress
from modicum.report.html import fill, resource, write_page
from modicum.report.parts import figure, section, tile
from modicum.report.sparsity_search_figures import sparsities
from modicum.report.units import number, percent
from modicum.search.found import Allotted, SparsitySearch

COLUMNS = (
    "Sparsities",
    "Lowest",
    "Highest",
    "Zeros",
    "On the search's text",
    "On text never seen",
    "× dense",
)


def write_sparsity_report(found: SparsitySearch, directory: str | Path) -> Path:
    """Writes report.html and report.json into `directory`, each under a temporary name first.

    Args:
        found: the finished search.
        directory: made if it is missing; reports in it are replaced.

    Returns:
        The path of the page.
    """
    return write_page(found, render(found), Path(directory))


def headline(found: SparsitySearch) -> str:
    """Whether the search was worth it, judged by the text that it never saw."""
    own, *others = found.allocations
    best = min(others, key=lambda each: each.held_out)
    values = f"perplexity {number(own.held_out, 4)} against {number(best.held_out, 4)}"
    if own.held_out < best.held_out:
        return f"Better than {best.name} on unseen text: {values}"
    return f"Not better than {best.name} on unseen text: {values}"


def render(found: SparsitySearch) -> str:
    """The page as text."""
    asked = found.settings
    own = found.found.sparsities
    return fill(
        "template.html",
        images="",
        style=resource("style.css"),
        name=escape(f"Search for a sparsity per block, {found.model}, {asked.method}"),
        headline=escape(headline(found)),
        lead=f"{percent(min(own))} to {percent(max(own))} by block, {percent(asked.sparsity)} on the whole",
        tiles=_tiles(found),
        body=fill(
            "sparsity_search.html",
            table=_table(found),
            blocks=_blocks(found),
            use=_use(found),
            progress=progress(found),
            lineage=lineage(found),
            made=made(found),
            measurement=measurement(found, {**asked.model_dump(), "options": asked.options or "none"}),
        ),
    )


def sparsity_table(found: SparsitySearch) -> Table:
    """A rich table with one row per allocation, and the headline on top."""
    table = Table(
        title=headline(found),
        title_style="bold",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    titles = (
        "sparsity",
        "lowest",
        "highest",
        "zeros",
        "perplexity\nsearch",
        "perplexity\nunseen",
        "× dense\nunseen",
    )
    for title in titles:
        table.add_column(title, justify="left" if title == "sparsity" else "right", no_wrap=True)
    for allotted in found.allocations:
        table.add_row(*map(Text, _cells(allotted, found)))
    dense = (number(found.dense, 4), number(found.dense_held_out, 4), "1")
    table.add_row("dense", "", "", "", *dense, style="dim")
    return table


def _cells(allotted: Allotted, found: SparsitySearch) -> tuple[str, ...]:
    shares = allotted.sparsities
    return (
        allotted.name,
        percent(min(shares)),
        percent(max(shares)),
        percent(allotted.zeros, 4),
        number(allotted.fitness, 4),
        number(allotted.held_out, 4),
        f"{allotted.held_out / found.dense_held_out:.3f}",
    )


def _tiles(found: SparsitySearch) -> str:
    own, uniform, _ = found.allocations
    return "".join(
        [
            tile(f"{len(found.entries):,}", "allocations tried"),
            tile(number(own.fitness, 4), f"perplexity, uniform {number(uniform.fitness, 4)}"),
            tile(number(own.held_out, 4), f"on unseen text, uniform {number(uniform.held_out, 4)}"),
            tile(number(found.dense_held_out, 4), "on unseen text, dense"),
        ]
    )


def _table(found: SparsitySearch) -> str:
    heads = "".join(f'<th scope="col">{title}</th>' for title in COLUMNS[1:])
    lowest = min(each.held_out for each in found.allocations)
    rows = "".join(_row(each, found, each.held_out == lowest) for each in found.allocations)
    note = (
        "Perplexities after one-shot pruning, nothing trained afterwards. The found sparsities were chosen for the "
        "text of the search; only the text that it never saw compares them fairly. Whole numbers of weights go, so "
        "that the zeros lie a little below the sparsity."
    )
    return (
        f'<div class="scroll"><table class="policies"><thead><tr><td></td>{heads}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div><p class="note">{note}</p>'
    )


def _row(allotted: Allotted, found: SparsitySearch, best: bool) -> str:
    name, *cells = _cells(allotted, found)
    unseen = len(cells) - 2
    written = "".join(
        f'<td class="{"better" if best and place == unseen else ""}"><data value="{text}">{escape(text)}</data></td>'
        for place, text in enumerate(cells)
    )
    return f'<tr><th scope="row">{escape(name)}</th>{written}</tr>'


def _blocks(found: SparsitySearch) -> str:
    key = '<span class="key"><i class="gain"></i>found<i class="cost"></i>OWL</span>'
    picture = figure(
        "Sparsity of every block, from the first; the broken line is the mean", sparsities(found), key
    )
    return section("Where the weights go", picture)


def _use(found: SparsitySearch) -> str:
    asked = found.settings
    settings = "".join(f" --set {key}={value}" for key, value in asked.options.items())
    command = (
        f"modicum compress MODEL --method {asked.method}{settings} --set sparsity={asked.sparsity:g} \\\n"
        "    --set allocation=sparsity.json --out small"
    )
    return f"<pre>{escape(command)}</pre>"
