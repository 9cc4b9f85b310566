"""What a cache method leaves behind: a policy that is attached to a model and saved as JSON.

    policy = ScaleKV(budget="10%").fit(Anatomy.of(model), context)
    with policy.attach(model):
        images = model.generate(...)

A policy knows its method with all settings, the table of tokens per layer and map for the image shape that it was
fitted for, and the uniform budget behind the table. From these it makes a cache for every generation. An image of
another shape, or of fewer maps, gets the table that the same rule makes for it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from pydantic import Field
from torch import nn

from modicum.allocate.cache_tokens import CacheBudget
from modicum.calibrate.selectivity import Selectivity
from modicum.errors import CheckpointError, InvalidSetting, ModicumError, UnsupportedModel
from modicum.method import Context, Policy, RuntimeMethod, build
from modicum.models.anatomy import Anatomy
from modicum.models.next_scale import Cache, KVCache, NextScaleModel, Schedule
from modicum.models.next_scale.cache import KeyDtype

FORMAT, VERSION = "modicum.cache-policy", 1


class CacheMethod(RuntimeMethod):
    """Base of the methods that decide what the cache of a next-scale model holds."""

    decides: ClassVar[str] = "what the key-value cache holds"
    runs: ClassVar[tuple[str, ...]] = ("var", "infinity")

    store_last: bool = Field(
        False, description="store the last map too, as the original models do, although nothing reads it"
    )
    key_dtype: KeyDtype = Field(
        "attention", description="store keys as attention reads them, or as computed (float32 after a norm)"
    )

    @property
    def least(self) -> int:
        """Tokens that stay in any case: no layer can be cut to fewer."""
        return 1

    @abstractmethod
    def fit(self, anatomy: Anatomy, context: Context) -> CachePolicy:
        """The policy for this model and the usual size of its images."""

    @classmethod
    def restore(cls, data: Mapping[str, Any]) -> CachePolicy:
        """The policy that `CachePolicy.to_json` wrote.

        Raises:
            CheckpointError: something else, of another version, or damaged.
        """
        return policy_from_json(data)

    @abstractmethod
    def table(self, schedule: Schedule, layers: int, uniform: int) -> CacheBudget:
        """How `uniform` tokens per layer are split over the layers and maps of a schedule."""

    @abstractmethod
    def cache(self, policy: CachePolicy) -> Cache:
        """A new cache that follows `policy`."""


@dataclass(frozen=True)
class CachePolicy(Policy):
    """A cache method fitted to a model.

    Attributes:
        method: with all settings, those that fitting found out included.
        budget: tokens per layer and map for the usual size of the images.
        uniform: tokens per layer if all layers were equal.
        selectivity: what a split by layer was measured from; None if nothing was measured.

    Raises:
        InvalidSetting: a layer would be cut to fewer tokens than the method keeps in any case.
    """

    method: CacheMethod
    budget: CacheBudget
    uniform: int
    selectivity: Selectivity | None = None

    def __post_init__(self) -> None:
        least, new = self.method.least, self.budget.schedule.tokens
        for layer, row in enumerate(self.budget.tokens):
            for k in range(1, len(row)):
                if row[k] < min(least, row[k - 1] + new[k - 1]):
                    raise InvalidSetting(
                        f"Layer {layer} would carry {row[k]} tokens into map {k}; {self.method.name} keeps {least}.",
                        "Give a larger budget, or a smaller window.",
                    )

    @contextmanager
    def attach(self, model: nn.Module) -> Iterator[NextScaleModel]:
        """A context in which every generation of `model` runs under this policy.

        Raises:
            UnsupportedModel: the model does not draw map by map.
            InvalidSetting: it has another number of layers than the model that the policy was fitted to.
        """
        model = next_scale(model)
        if model.shape.layers != self.budget.layers:
            raise InvalidSetting(
                f"The policy is for a model of {self.budget.layers} layers, this one has {model.shape.layers}.",
                "Fit a policy to this model.",
            )
        with model.caching(self.make_cache):
            yield model

    def make_cache(self) -> KVCache:
        """The cache of one generation."""
        return self.method.cache(self)

    def table(self, schedule: Schedule) -> CacheBudget:
        """Tokens per layer and map for images of any shape."""
        if schedule == self.budget.schedule:
            return self.budget
        return self.method.table(schedule, self.budget.layers, self.uniform)

    def to_json(self) -> dict[str, Any]:
        """Plain values that `policy_from_json` reads."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "method": self.method.name,
            "settings": self.method.settings(),
            "schedule": [list(size) for size in self.budget.schedule.sizes],
            "uniform": self.uniform,
            "tokens": [list(row) for row in self.budget.tokens],
            "selectivity": None if self.selectivity is None else self.selectivity.to_json(),
        }


def policy_from_json(data: Mapping[str, Any]) -> CachePolicy:
    """The inverse of `CachePolicy.to_json`.

    Raises:
        CheckpointError: something else, of another version, or damaged.
    """
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise CheckpointError("This is no cache policy of modicum.", "Give a file that modicum wrote.")
    if data.get("version") != VERSION:
        raise CheckpointError(
            f"The cache policy has version {data.get('version')!r}, this modicum reads version {VERSION}.",
            "Fit the policy again, or update modicum.",
        )
    try:
        return _read(data)
    except (KeyError, TypeError, ValueError, ModicumError) as error:
        what = error.what if isinstance(error, ModicumError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"The cache policy is damaged: {what}", "Fit the policy again.") from error


def next_scale(model: nn.Module) -> NextScaleModel:
    """`model`, if it draws map by map.

    Raises:
        UnsupportedModel: it does not.
    """
    if not isinstance(model, NextScaleModel):
        raise UnsupportedModel(
            f"{type(model).__name__} does not draw images map by map, so this cache policy does not fit it.",
            "Give a VAR or Infinity model.",
        )
    return model


def _read(data: Mapping[str, Any]) -> CachePolicy:
    method = build(data["method"], data["settings"])
    if not isinstance(method, CacheMethod):
        raise InvalidSetting(f"{method.name} is no cache method.", "Name one of the family cache.")
    schedule = Schedule.of(data["schedule"])
    budget = CacheBudget(schedule, tuple(tuple(int(n) for n in row) for row in data["tokens"]))
    measured = cast("Mapping[str, Any] | None", data["selectivity"])
    selectivity = None if measured is None else Selectivity.from_json(measured)
    return CachePolicy(method, budget, int(data["uniform"]), selectivity)
