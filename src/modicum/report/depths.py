"""The report of a DepthComparison: a page with the pictures, and the numbers as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor

from modicum.evaluate.depth_comparison import DepthComparison
from modicum.report import depth_sections as sections
from modicum.report import training_sections
from modicum.report.coding_section import coding
from modicum.report.depth_rows import columns, headline
from modicum.report.html import fill, resource, write_page
from modicum.report.rows import Value


def write_depth_report(comparison: DepthComparison, images: Sequence[Tensor], directory: str | Path) -> Path:
    """Writes report.html and report.json into `directory`, each under a temporary name first.

    Args:
        comparison: what was measured.
        images: `[B, C, H, W]` in [0, 1] of each of its entries.
        directory: made if it is missing; reports in it are replaced.

    Returns:
        The path of the page.
    """
    return write_page(comparison, render(comparison, images), Path(directory))


def render(comparison: DepthComparison, images: Sequence[Tensor]) -> str:
    """The page as text."""
    return fill(
        "template.html",
        images="; img-src data:",
        style=resource("style.css"),
        name=escape(comparison.entries[-1].name),
        headline=escape(headline(comparison)),
        lead=sections.lead(comparison),
        tiles=sections.tiles(comparison),
        body=fill(
            "depths.html",
            table=sections.table(comparison),
            pictures=sections.pictures(comparison, images),
            coding=coding(comparison.coding),
            decisions=sections.decisions(comparison),
            learning=training_sections.learning(comparison),
            losses=training_sections.losses(comparison),
            made=sections.made(comparison),
            measurement=sections.measurement(comparison),
        ),
    )


def depth_table(comparison: DepthComparison) -> Table:
    """A rich table with one row per model, and the headline sentence on top."""
    shown, first = columns(comparison), comparison.entries[0]
    table = Table(
        title=headline(comparison),
        title_style="bold",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("model", no_wrap=True)
    for column in shown:
        table.add_column(f"{column.title}\n{column.unit}".strip(), justify="right", no_wrap=True)
    for entry in comparison.entries:
        table.add_row(Text(entry.name), *(_cell(column.read(entry, first)) for column in shown))
    return table


def _cell(value: Value) -> Text:
    style = "dim" if value.exact is None else ""
    return Text.assemble((value.text, style), (f"\n{value.spread}" if value.spread else "", "dim"))
