"""Whether the steps of a recipe can follow each other, from what each one needs, keeps and gives.

There are no lists of methods that go together. A recipe carries a set of live properties: what earlier steps gave
and nobody broke since. A step whose needs are not live, or that would break a live property, is refused before
anything is loaded; if another order of the same steps works, the refusal says which.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import permutations

from modicum.errors import RecipeConflict
from modicum.method import LayerMethod, Method, ModelMethod
from modicum.weights.properties import Property

LONGEST_REORDERED = 6


def split_steps(steps: Sequence[Method]) -> tuple[tuple[ModelMethod, ...], tuple[LayerMethod, ...]]:
    """The steps over the whole model, which come first, and the steps that work layer by layer.

    Raises:
        RecipeConflict: a step over the whole model comes behind one that works layer by layer, or a step is of
            neither kind.
    """
    whole: list[ModelMethod] = []
    layers: list[LayerMethod] = []
    for step in steps:
        if isinstance(step, LayerMethod):
            layers.append(step)
        elif not isinstance(step, ModelMethod):
            raise RecipeConflict(f"{step.name} changes how a model runs and cannot be part of this run.")
        elif layers:
            raise RecipeConflict(
                f"{step.name} works on the whole model and cannot follow {layers[-1].name}.",
                "Put the steps over the whole model first.",
            )
        else:
            whole.append(step)
    return tuple(whole), tuple(layers)


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
    return "No order of these steps works; leave one out."


def _works(steps: Sequence[Method], start: Iterable[Property]) -> bool:
    live = frozenset(start)
    for step in steps:
        if _complaint(step, live, dict.fromkeys(live, "")):
            return False
        live = live | frozenset(step.gives())
    return True
