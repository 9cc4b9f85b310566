"""A Comparison that a person can look at: a terminal table, a self-contained page, and JSON beside it."""

from modicum.report.html import write_report
from modicum.report.rows import headline
from modicum.report.terminal import comparison_table

__all__ = ["comparison_table", "headline", "write_report"]
