"""The report: one HTML page that needs nothing else, and the same numbers as JSON beside it.

The page loads nothing (its content security policy forbids it), runs no script, and follows the
reader's light or dark setting. All text that comes from models, files or users is escaped where it enters.
"""

from __future__ import annotations

import os
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from modicum.evaluate import Comparison
from modicum.report import sections
from modicum.report.rows import headline


def write_report(comparison: Comparison, directory: str | Path) -> Path:
    """Writes report.html and report.json into `directory`, each under a temporary name first.

    Args:
        comparison: what was measured.
        directory: made if it is missing; reports in it are replaced.

    Returns:
        The path of the page.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    comparison.save(directory / "report.json")
    page = directory / "report.html"
    partial = page.with_name("report.html.partial")
    partial.write_text(render(comparison), encoding="utf-8")
    os.replace(partial, page)
    return page


def render(comparison: Comparison) -> str:
    """The page as text."""
    package = files("modicum.report")
    template = Template(package.joinpath("template.html").read_text(encoding="utf-8"))
    return template.substitute(
        style=package.joinpath("style.css").read_text(encoding="utf-8"),
        name=escape(comparison.name),
        headline=escape(headline(comparison)),
        lead=sections.lead(comparison),
        tiles=sections.tiles(comparison),
        table=sections.table(comparison),
        layers=sections.layers(comparison),
        samples=sections.samples(comparison),
        recipe=sections.recipe(comparison),
        measurement=sections.measurement(comparison),
    )
