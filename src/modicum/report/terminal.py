"""The comparison as a table for the terminal; in a pipe rich leaves the colours out."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from modicum.evaluate import Comparison
from modicum.report.rows import Row, Value, comparison_rows, headline
from modicum.report.units import NOT_MEASURED

STYLES = {"better": "green", "worse": "yellow", "same": "dim", "": ""}


def comparison_table(comparison: Comparison) -> Table:
    """A rich table of before, after and change, with the headline sentence on top."""
    table = Table(title=headline(comparison), title_style="bold", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in comparison_rows(comparison):
        table.add_row(_label(row), _cell(row.before), _cell(row.after), _change(row))
    return table


def _label(row: Row) -> Text:
    return Text.assemble(row.label, (f"  {row.unit}", "dim") if row.unit else "")


def _cell(value: Value) -> Text:
    return Text(value.text, style="dim" if value.text in (NOT_MEASURED, "reference") else "")


def _change(row: Row) -> Text:
    spread = f" ({row.change.spread})" if row.change.spread else ""
    return Text.assemble((row.change.text, STYLES[row.verdict]), (spread, "dim"))
