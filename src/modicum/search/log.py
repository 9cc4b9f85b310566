"""The log of a search: one JSON line per individual, written as soon as its fitness is known.

A search that was killed begins again, draws the same candidates, and finds their outcomes here. So the log is not only
read, it is checked: what it says was drawn has to be what is drawn now.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from modicum.errors import CheckpointError, OutputExists
from modicum.search.genotype import G
from modicum.search.individual import Draft, Individual, Outcome

VERSION = 2


class Log:
    """The individuals of one search.

    Args:
        file: where they are kept; it is begun if it is missing.
        identity: everything that the search depends on, as plain JSON values.

    Raises:
        OutputExists: the file is the log of another search.
        CheckpointError: it is damaged.
    """

    def __init__(self, file: Path, identity: dict[str, Any]) -> None:
        self.file, self.read = file, 0
        header = {"version": VERSION, **identity}
        lines = self._lines()
        if not lines:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(header) + "\n")
        else:
            _refuse_another(file, lines[0], header)
        self.known = lines[1:]

    def found(self, draft: Draft[G]) -> Individual[G] | None:
        """What became of a candidate, if that was written down; asked for in the order of the candidates.

        Raises:
            CheckpointError: another candidate has its place.
        """
        if self.read >= len(self.known):
            return None
        line, place = self.known[self.read], self.read + 2
        self.read += 1
        try:
            outcome = Outcome(line["fitness"], line["full"], line["seconds"])
            individual = Individual(draft, outcome, line["elapsed"])
            same = _entry(individual) == line
        except (KeyError, TypeError):
            same = False
        if not same:
            raise CheckpointError(
                f"Line {place} of {self.file} is not what this search draws there ({draft.genome}).",
                "The log is damaged or of another version of modicum: name another directory.",
            )
        return individual

    def write(self, individual: Individual[Any]) -> None:
        """Add one."""
        with self.file.open("a") as stream:
            stream.write(json.dumps(_entry(individual)) + "\n")

    def _lines(self) -> list[Any]:
        """What was written whole; a line that was cut off by a kill is taken away."""
        if not self.file.exists():
            return []
        content = self.file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self.file.write_bytes(whole)
        return [self._parsed(place, line) for place, line in enumerate(whole.splitlines(), 1)]

    def _parsed(self, place: int, line: bytes) -> Any:
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"Line {place} of {self.file} is damaged.",
                "Name another directory, or cut the log before that line.",
            ) from error


def _entry(individual: Individual[Any]) -> dict[str, Any]:
    draft, outcome = individual.draft, individual.outcome
    return {
        "number": draft.number,
        "generation": draft.generation,
        "genome": draft.genome,
        "operator": draft.operator,
        "parents": list(draft.parents),
        "hash": draft.genotype.digest[:16],
        "behaviour": draft.behaviour[:16],
        "draws": draft.draws,
        "fitness": outcome.fitness,
        "full": outcome.full,
        "seconds": outcome.seconds,
        "elapsed": individual.elapsed,
    }


def _refuse_another(file: Path, found: Any, wanted: dict[str, Any]) -> None:
    if found == wanted:
        return
    differing = "something else"
    if isinstance(found, dict):
        keys = [key for key in wanted if found.get(key) != wanted[key]]
        differing = ", ".join(f"{key} {found.get(key)}, not {wanted[key]}" for key in keys[:3]) or differing
    raise OutputExists(
        f"{file} is the log of another search: {differing}.",
        "Name another directory, or give the same options.",
    )
