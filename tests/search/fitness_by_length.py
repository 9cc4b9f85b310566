"""A fitness that other processes make without loading a model."""

from __future__ import annotations

from modicum.search.individual import Outcome


def by_length(genome: str, limit: float) -> Outcome:
    """Short candidates are good ones."""
    return Outcome(float(len(genome)))


def maker() -> object:
    """Makes it."""
    return by_length
