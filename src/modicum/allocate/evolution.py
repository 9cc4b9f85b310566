"""Evolution of candidates at a fixed size: the best of a population breed, and nothing is ever evaluated twice.

    generation 0: the candidates to begin with, and random legal ones
    then:         mutations of the best, crossings of two of them, random ones to fill up

Every loss is written to a log as soon as it is known. A search that was killed begins again, draws the same candidates
and finds their losses in the log: it is soon where it was, and ends where it would have ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from modicum.allocate.width_space import Candidate, WidthSpace, key
from modicum.errors import InvalidSetting

TRIES = 10  # draws per candidate that is wanted, before a generation makes do with fewer


@dataclass(frozen=True)
class Scored:
    """A candidate and its loss; less is better."""

    loss: float
    candidate: Candidate


@dataclass
class Log:
    """Losses by candidate, in memory and as JSON lines.

    Args:
        loss: what a candidate costs.
        file: where the losses are kept; None keeps none.
        identity: everything that the losses depend on; a file of another identity is begun anew.
    """

    loss: Callable[[Candidate], float]
    file: Path | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    known: dict[str, float] = field(default_factory=dict, init=False)
    evaluated: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.file is None:
            return
        lines = list(_lines(self.file))
        if lines and lines[0] == self.identity:
            self.known = {line["key"]: line["loss"] for line in lines[1:]}
        else:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(self.identity) + "\n")

    def __call__(self, candidate: Candidate) -> float:
        """The loss, from the log if it is there."""
        name = key(candidate)
        if name not in self.known:
            self.known[name] = self.loss(candidate)
            self.evaluated += 1
            if self.file is not None:
                with self.file.open("a") as stream:
                    stream.write(json.dumps({"key": name, "loss": self.known[name]}) + "\n")
        return self.known[name]


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """What was written whole; a line that was cut off by a kill is taken away, so that the next one begins anew."""
    if not file.exists():
        return
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        file.write_bytes(whole)
    for line in whole.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


@dataclass(frozen=True)
class Evolution:
    """How many there are of what.

    Args:
        generations: after the first, random one.
        population: candidates per generation.
        top: the best ever that may be parents.
        mutations: of a generation.
        crossovers: of a generation; random ones fill up the population.
    """

    generations: int
    population: int
    top: int
    mutations: int
    crossovers: int

    def run(
        self,
        space: WidthSpace,
        loss: Callable[[Candidate], float],
        generator: torch.Generator,
        first: Sequence[Candidate] = (),
        told: Callable[[int, float], None] = lambda generation, best: None,
    ) -> list[Scored]:
        """The best candidates, best first.

        Args:
            space: where they come from.
            loss: of a candidate; a `Log` remembers.
            generator: of all chance.
            first: candidates of generation 0, beside random ones; those of another size are left out.
            told: called with each generation's number and the best loss so far.

        Raises:
            InvalidSetting: no draw has the size that is asked for.
        """
        best: list[Scored] = []
        seen: set[str] = set()
        for generation in range(self.generations + 1):
            drawn = [] if best else [each for each in first if _new(each, space, seen)]
            drawn += self._next(space, best, seen, self.population - len(drawn), generator)
            if not best and not drawn:
                raise InvalidSetting(
                    "No choice of widths has the size that is asked for.", "Change the ratio."
                )
            scored = [Scored(loss(candidate), candidate) for candidate in drawn]
            best = sorted([*best, *scored], key=lambda each: each.loss)[: self.top]
            told(generation, best[0].loss)
        return best

    def _next(
        self, space: WidthSpace, best: list[Scored], seen: set[str], count: int, generator: torch.Generator
    ) -> list[Candidate]:
        """A population of legal candidates that were not seen before."""

        def parent() -> Candidate:
            return best[int(torch.randint(len(best), (1,), generator=generator))].candidate

        def draw(count: int, make: Callable[[], Candidate]) -> list[Candidate]:
            found: list[Candidate] = []
            for _ in range(TRIES * max(count, 0)):
                candidate = make()
                if _new(candidate, space, seen):
                    found.append(candidate)
                    if len(found) == count:
                        break
            return found

        if not best:
            return draw(count, lambda: space.random(generator))
        bred = draw(self.mutations, lambda: space.mutated(parent(), generator))
        bred += draw(self.crossovers, lambda: space.crossed(parent(), parent(), generator))
        return bred + draw(count - len(bred), lambda: space.random(generator))


def _new(candidate: Candidate, space: WidthSpace, seen: set[str]) -> bool:
    """Whether a candidate is legal and was not seen before; it is from now on."""
    name = key(candidate)
    if name in seen or not space.legal(candidate):
        return False
    seen.add(name)
    return True
