"""The report of a CacheComparison: a page with the pictures, the pictures as a file, and the numbers as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import torch
from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor

from modicum.evaluate.cache_comparison import CacheComparison
from modicum.report import cache_sections as sections
from modicum.report.cache_rows import best_at_budget, columns, headline
from modicum.report.files import write_whole
from modicum.report.html import fill, resource
from modicum.report.pictures import enlarged, grid, labelled, to_png
from modicum.report.rows import Value

SIDE = 64  # least pixels of an image in pictures.png


def write_cache_report(comparison: CacheComparison, images: Sequence[Tensor], directory: str | Path) -> Path:
    """Writes report.html, pictures.png and comparison.json into `directory`, each under a temporary name first.

    Args:
        comparison: what was measured.
        images: `[B, C, H, W]` in [0, 1] of each of its entries.
        directory: made if it is missing; reports in it are replaced.

    Returns:
        The path of the page.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    comparison.save(directory / "comparison.json")
    write_whole(directory / "pictures.png", to_png(sheet(comparison, images)))
    page = directory / "report.html"
    write_whole(page, render(comparison, images).encode())
    return page


def render(comparison: CacheComparison, images: Sequence[Tensor]) -> str:
    """The page as text."""
    return fill(
        "template.html",
        images="; img-src data:",
        style=resource("style.css"),
        name=escape(comparison.name),
        headline=escape(headline(comparison)),
        lead=sections.lead(comparison),
        tiles=sections.tiles(comparison),
        body=fill(
            "caches.html",
            table=sections.table(comparison),
            pictures=sections.pictures(comparison, images),
            budgets=sections.budgets(comparison),
            made=sections.made(comparison),
            measurement=sections.measurement(comparison),
        ),
    )


def sheet(comparison: CacheComparison, images: Sequence[Tensor]) -> Tensor:
    """All images in one `[C, H, W]`: one labelled row per entry, one column per seed."""
    strips = [grid(large, columns=len(large)) for large in (enlarged(drawn, SIDE) for drawn in images)]
    return labelled(torch.stack(strips), [entry.label for entry in comparison.entries])


def cache_table(comparison: CacheComparison) -> Table:
    """A rich table with one row per policy and budget, and the headline sentence on top."""
    shown, full = columns(comparison), comparison.entries[0]
    table = Table(
        title=headline(comparison),
        title_style="bold",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("policy", no_wrap=True)
    for column in shown:
        table.add_column(f"{column.title}\n{column.unit}".strip(), justify="right", no_wrap=True)
    for entry in comparison.entries:
        cells = [
            _cell(column.read(entry, full), best_at_budget(comparison, column, entry)) for column in shown
        ]
        table.add_row(Text(entry.label), *cells)
    return table


def _cell(value: Value, best: bool) -> Text:
    style = "green" if best else "dim" if value.exact is None else ""
    return Text.assemble((value.text, style), (f"\n{value.spread}" if value.spread else "", "dim"))
