"""Rows of a benchmark, kept as they come: an interrupted one goes on where it stood. And their table over the seeds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

Row = dict[str, Any]


class KeptRows:
    """Rows by seed and name in a JSON file, beside the facts that hold for all of them.

    Args:
        file: to read, if it was written under the same settings, and to write.
        settings: what the rows depend on; rows of other settings are not taken over.
        facts: written along, such as the command and the environment.
    """

    def __init__(self, file: Path, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        self.file, self.settings, self.facts = file, dict(settings), dict(facts)
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        same = before.get("settings") == json.loads(json.dumps(self.settings))
        self.runs: dict[str, dict[str, Row]] = before["runs"] if same else {}

    def row(self, seed: int, name: str, measure: Callable[[], Row]) -> Row:
        """The row of this seed and name, which is measured and written if it is not there."""
        run = self.runs.setdefault(str(seed), {})
        if name not in run:
            run[name] = measure()
            self.write()
        return run[name]

    def write(self) -> None:
        """Write all rows, whole or not at all."""
        value = {**self.facts, "settings": self.settings, "runs": self.runs}
        partial = self.file.with_name(self.file.name + ".partial")
        partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, self.file)


def table(
    runs: Sequence[Mapping[str, Row]], columns: Mapping[str, Callable[[float], str]], first: str = "choice"
) -> str:
    """A markdown table: a line per name with the mean over the runs, and the least and the most of them.

    Args:
        runs: rows by name, of one seed each.
        columns: key of a measured value and how it is written; those that no row has are left out.
        first: title of the names.
    """
    shown = {key: write for key, write in columns.items() if any(key in row for row in runs[0].values())}
    lines = [f"| {first} | blocks (first seed) | {' | '.join(shown)} |", "|---" * (2 + len(shown)) + "|"]
    for name, row in runs[0].items():
        values = {key: [run[name][key] for run in runs if name in run] for key in shown if key in row}
        cells = [spread(values[key], write) if key in values else "" for key, write in shown.items()]
        kept = " ".join(map(str, row.get("kept", [])))
        lines.append(f"| {name} | {kept} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float], write: Callable[[float], str]) -> str:
    """Mean (least..most); of one value, the value."""
    ends = f" ({write(min(values))}..{write(max(values))})" if len(values) > 1 else ""
    return write(mean(values)) + ends
