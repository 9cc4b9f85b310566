from __future__ import annotations

from io import StringIO

from rich.console import Console
from rich.table import Table

from modicum.evaluate import Comparison
from modicum.report import comparison_table


def shown(table: Table, terminal: bool = False) -> str:
    console = Console(
        file=StringIO(),
        width=110,
        force_terminal=terminal,
        color_system="standard" if terminal else None,
        no_color=False,  # what the environment says of colours is not under test
    )
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_shows_every_quantity_in_human_units(full: Comparison) -> None:
    text = shown(comparison_table(full))
    for piece in (
        "12.35",
        "13.33",
        "+8.0 %",
        "1.23 MB",
        "556 kB",
        "\u221255.0 %",
        "0.0123",
        "91.2 %",
        "84.6 %",
    ):
        assert piece in text
    assert "1.49\u00d7 (1.45\u00d7\u20131.55\u00d7)" in text
    assert text.lstrip().startswith("45 % of the bytes for 1.08\u00d7 the perplexity")


def test_a_pipe_gets_no_colours_and_a_terminal_does(full: Comparison) -> None:
    assert "\x1b" not in shown(comparison_table(full))
    coloured = shown(comparison_table(full), terminal=True)
    assert "\x1b[32m\u221255.0 %" in coloured  # green: fewer bytes
    assert "\x1b[33m+8.0 %" in coloured  # yellow: more perplexity


def test_missing_numbers_are_called_not_measured() -> None:
    assert shown(comparison_table(Comparison())).count("not measured") == 14
