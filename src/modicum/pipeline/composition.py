"""Whether the steps of a recipe can follow each other, from what each one needs, keeps and gives.

There are no lists of methods that go together. A recipe carries a set of live properties: what earlier steps gave
and nobody broke since. A step whose needs are not live, or that would break a live property, is refused before
anything is loaded; if another order of the same steps works, the refusal says which.

A run carries a recipe out in stages: adjacent steps over the whole model, then adjacent layer steps, and so on. Behind
layer steps only such a step over the whole model can stand that keeps zeros: training that recovers what pruning took.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise, permutations
from typing import NamedTuple

from modicum.errors import RecipeConflict
from modicum.method import LayerMethod, Method, ModelMethod, RuntimeMethod, StorageMethod
from modicum.weights.properties import Property, ZeroMask

LONGEST_REORDERED = 6


Stage = tuple[Method, ...]
"""Adjacent steps of one kind: over the whole model, or layer by layer."""


class Split(NamedTuple):
    """The steps of a recipe by what they change.

    Attributes:
        whole: over the whole model.
        layers: layer by layer.
        storage: how the result is stored; one at most.
        runtime: how the model runs; fitted to what the others left.
        stages: the steps that change weights in the order in which a run carries them out, adjacent ones of one kind
            together.
    """

    whole: tuple[ModelMethod, ...]
    layers: tuple[LayerMethod, ...]
    storage: tuple[StorageMethod, ...]
    runtime: tuple[RuntimeMethod, ...]
    stages: tuple[Stage, ...]

    @property
    def weights(self) -> tuple[Method, ...]:
        """The steps that change weights."""
        return tuple(step for stage in self.stages for step in stage)

    @property
    def written(self) -> tuple[Method, ...]:
        """The steps that change what is on disk."""
        return (*self.weights, *self.storage)


KINDS = {
    ModelMethod: "works on the whole model",
    LayerMethod: "works layer by layer",
    StorageMethod: "codes the finished weights",
    RuntimeMethod: "is fitted to the finished model",
}


def split_steps(steps: Sequence[Method]) -> Split:
    """The steps of a recipe by kind: over the whole model, layer by layer, how it is stored, how the model runs.

    Raises:
        RecipeConflict: they come in another order, two of them code the weights, or two of them decide the same about
            how a model runs.
    """
    kinds = tuple(KINDS)
    places = [next(place for place, kind in enumerate(kinds) if isinstance(step, kind)) for step in steps]
    for (step, place), (after, then) in pairwise(zip(steps, places, strict=True)):
        recovers = (
            isinstance(step, LayerMethod) and isinstance(after, ModelMethod) and ZeroMask in after.keeps
        )
        if place > then and not recovers:
            raise RecipeConflict(
                f"{after.name} {KINDS[kinds[then]]} and cannot follow {step.name}, which {KINDS[kinds[place]]}.",
                f"Put {after.name} before {step.name}.",
            )
    storage = tuple(step for step in steps if isinstance(step, StorageMethod))
    if len(storage) > 1:
        raise RecipeConflict(
            f"{storage[0].name} and {storage[1].name} both code the weights.", "Leave one of them out."
        )
    runtime = tuple(step for step in steps if isinstance(step, RuntimeMethod))
    _check_decisions(runtime)
    return Split(
        tuple(step for step in steps if isinstance(step, ModelMethod)),
        tuple(step for step in steps if isinstance(step, LayerMethod)),
        storage,
        runtime,
        tuple(_stages(steps)),
    )


def _stages(steps: Sequence[Method]) -> Iterator[Stage]:
    changing = (step for step in steps if isinstance(step, ModelMethod | LayerMethod))
    for _, stage in groupby(changing, key=lambda step: isinstance(step, LayerMethod)):
        yield tuple(stage)


def _check_decisions(steps: Sequence[RuntimeMethod]) -> None:
    deciders: dict[str, str] = {}
    for step in steps:
        if step.decides in deciders:
            raise RecipeConflict(
                f"{deciders[step.decides]} and {step.name} both decide {step.decides}.",
                "Leave one of them out.",
            )
        deciders[step.decides] = step.name


def live_properties(steps: Sequence[Method], start: Iterable[Property] = ()) -> list[frozenset[Property]]:
    """What holds after each step, beginning with the properties that the model arrives with.

    Raises:
        RecipeConflict: a need is not met, or a live property would be lost.
    """
    live = frozenset(start)
    givers: dict[Property, str] = dict.fromkeys(live, "the model")
    after = []
    for step in steps:
        complaint = _complaint(step, live, givers)
        if complaint:
            raise RecipeConflict(complaint, _suggestion(steps, start))
        given = frozenset(step.gives())
        live = live | given
        givers.update(dict.fromkeys(given, step.name))
        after.append(live)
    return after


def _complaint(step: Method, live: frozenset[Property], givers: dict[Property, str]) -> str:
    for need in step.needs:
        if not any(isinstance(held, need) for held in live):
            return f"{step.name} needs the property '{_words(need)}', which no step before it gives."
    for held in sorted(live, key=str):
        if not isinstance(held, step.keeps):
            return f"{givers[held]} leaves {held.name}, which {step.name} would break."
    return ""


def _words(kind: type[Property]) -> str:
    """The name of a kind of property as people write it: ZeroMask is "zero mask", NMPattern "NM pattern"."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]+", kind.__name__)
    return " ".join(word if word.isupper() else word.lower() for word in words)


def _suggestion(steps: Sequence[Method], start: Iterable[Property]) -> str:
    if len(steps) <= LONGEST_REORDERED:
        for order in permutations(steps):
            if _works(order, start):
                return f"This order works: {' then '.join(step.name for step in order)}."
    if _works(steps, ()):
        return "The steps go together: begin with the original model."
    return "No order of these steps works; leave one out."


def _works(steps: Sequence[Method], start: Iterable[Property]) -> bool:
    live = frozenset(start)
    for step in steps:
        if _complaint(step, live, dict.fromkeys(live, "")):
            return False
        live = live | frozenset(step.gives())
    return True
