"""Pieces of a page that every report is made of; texts are escaped here, unless they are said to be HTML."""

from __future__ import annotations

from html import escape
from typing import Any

from modicum.report.rows import Value


def tile(value: str, label: str, kind: str = "") -> str:
    """One large figure with what it counts."""
    return f'<li class="{kind}"><strong>{escape(value)}</strong><span>{escape(label)}</span></li>'


def cell(value: Value) -> str:
    """The inside of a table cell: the text, the exact number behind it, the spread below it."""
    spread = f"<small>{escape(value.spread)}</small>" if value.spread else ""
    if value.exact is None:
        return f'<span class="missing">{escape(value.text)}</span>' if value.text else ""
    return f'<data value="{value.exact!r}">{escape(value.text)}</data>{spread}'


def facts(title: str, known: dict[str, Any]) -> str:
    """A list of names and values; a value of None is unknown."""
    lines = "".join(
        f"<div><dt>{escape(key.replace('_', ' '))}</dt><dd>{_fact(value)}</dd></div>"
        for key, value in known.items()
    )
    return f"<div><h3>{escape(title)}</h3><dl>{lines}</dl></div>" if lines else ""


def _fact(value: Any) -> str:
    if value is None:
        return '<span class="missing">unknown</span>'
    if isinstance(value, list | tuple):
        return escape(", ".join(map(str, value)))
    return escape(f"{value:,}" if isinstance(value, int) else str(value))


def figure(title: str, picture: str, key: str) -> str:
    """A picture under its title, with the key of its colours."""
    return (
        f'<figure><figcaption>{escape(title)}{key}</figcaption><div class="scroll">{picture}</div></figure>'
    )


def section(title: str, body: str) -> str:
    """A part of the page under its heading; `body` is HTML."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"
