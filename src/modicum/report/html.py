"""The report: one HTML page that needs nothing else, and the same numbers as JSON beside it.

The page loads nothing (its content security policy forbids it), runs no script, and follows the
reader's light or dark setting. All text that comes from models, files or users is escaped where it enters.
"""

from __future__ import annotations

from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, Protocol

from modicum.evaluate import Comparison
from modicum.report import sections
from modicum.report.coding_section import coding
from modicum.report.files import write_whole
from modicum.report.rows import headline


class Saved(Protocol):
    """What was measured, and can be written as JSON."""

    def save(self, path: Path) -> Any:
        """Write it."""


def write_report(comparison: Comparison, directory: str | Path) -> Path:
    """Writes report.html and report.json into `directory`, each under a temporary name first.

    Args:
        comparison: what was measured.
        directory: made if it is missing; reports in it are replaced.

    Returns:
        The path of the page.
    """
    return write_page(comparison, render(comparison), Path(directory))


def write_page(record: Saved, html: str, directory: Path) -> Path:
    """Write report.html and report.json into a directory, which is made if it is missing; returns the page.

    Args:
        record: what was measured.
        html: the page about it.
        directory: reports in it are replaced.
    """
    directory.mkdir(parents=True, exist_ok=True)
    record.save(directory / "report.json")
    page = directory / "report.html"
    write_whole(page, html.encode())
    return page


def render(comparison: Comparison) -> str:
    """The page as text."""
    return fill(
        "template.html",
        images="",
        style=resource("style.css"),
        name=escape(comparison.name),
        headline=escape(headline(comparison)),
        lead=sections.lead(comparison),
        tiles=sections.tiles(comparison),
        body=fill(
            "comparison.html",
            table=sections.table(comparison),
            coding=coding(comparison.coding),
            layers=sections.layers(comparison),
            samples=sections.samples(comparison),
            recipe=sections.recipe(comparison),
            measurement=sections.measurement(comparison),
        ),
    )


def fill(template: str, **parts: str) -> str:
    """A template of this package with its parts put in; they are HTML."""
    return Template(resource(template)).substitute(parts)


def resource(name: str) -> str:
    """A text file of this package."""
    return files("modicum.report").joinpath(name).read_text(encoding="utf-8")
