"""Sections of the pages of all searches by evolution: how it went, where the best comes from, how it was made."""

from __future__ import annotations

from html import escape
from typing import Any

from modicum.report import evolution_figures as figures
from modicum.report.parts import facts, figure, section
from modicum.report.units import number
from modicum.search.found import Search


def progress(found: Search) -> str:
    """Every candidate, and the best so far."""
    key = '<span class="key"><i class="gain"></i>a candidate<i class="faint"></i>given up early</span>'
    note = (
        "The line is the best so far. Heights are distances to the dense model in powers of ten, and what is far "
        "worse lies on the upper edge; a pointer over a point tells what the candidate is."
    )
    picture = figure("Perplexity, candidate by candidate", figures.progress(found), key)
    return section("How the search went", f'{picture}<p class="note">{note}</p>')


def lineage(found: Search) -> str:
    """What the best descends from."""
    key = '<span class="key"><i class="gain"></i>the best</span>'
    picture = figure("Parents, what made each from them, and its perplexity", figures.lineage(found), key)
    return section("Where the best one comes from", picture)


def made(found: Search) -> str:
    """The command, if it is known."""
    return section("How it was made", f"<pre>{escape(found.command)}</pre>") if found.command else ""


def measurement(found: Search, settings: dict[str, Any]) -> str:
    """Settings, times and the machine."""
    protocol = {
        **settings,
        "seconds of all trials": round(found.seconds, 1),
        "seconds per generation": [number(seconds, 3) for seconds in found.generation_seconds],
        "given up early": sum(not entry.full for entry in found.entries),
        "invalid": sum(entry.fitness is None for entry in found.entries),
    }
    return facts("Protocol", protocol) + facts("Environment", found.environment)
