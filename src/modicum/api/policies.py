"""Policies of runtime methods: by name with settings, fitted to a model, or saved beside its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, overload

import torch
from torch import nn

from modicum.allocate.budget_file import read_budget
from modicum.allocate.cache_size import parse_budget
from modicum.api.inputs import calibration, guided, request
from modicum.cache import CacheMethod, CachePolicy, policy_from_json
from modicum.cache.scalekv import ScaleKV
from modicum.diffusion.step_cache import StepMethod, StepPolicy
from modicum.errors import InvalidSetting, UnknownName
from modicum.evaluate.drawing import Request
from modicum.evaluate.inference import device_of
from modicum.formats.policies import Policies
from modicum.method import Context, Policy, RuntimeMethod, build, registry
from modicum.models import Anatomy
from modicum.models.next_scale import NextScaleModel
from modicum.models.state_files import read_json
from modicum.models.var import VAR
from modicum.zoo.locate import locate

FAMILY, STEP_FAMILY = "cache.", "diffusion."
PUBLISHED = "Scale "  # keys of a published budget file


def cache_methods() -> dict[str, type[CacheMethod]]:
    """All cache policies by their short names."""
    found = {name.removeprefix(FAMILY): method for name, method in registry().items()}
    return {name: method for name, method in found.items() if issubclass(method, CacheMethod)}


def cache_method(
    name: str, budget: str | None = None, settings: Mapping[str, Any] | None = None
) -> CacheMethod:
    """A cache policy by name, not yet fitted.

    Args:
        name: such as "scalekv".
        budget: "10%", "650" (tokens) or "8GB".
        settings: of the method.

    Raises:
        UnknownName: there is no such policy or setting; the hint is the nearest one.
        InvalidSetting: a budget for a policy without one, or a value out of range.
    """
    methods, short = cache_methods(), name.removeprefix(FAMILY)
    if short not in methods:
        raise UnknownName.among("cache policy", name, methods)
    given = dict(settings or {})
    if budget is not None:
        if "budget" not in methods[short].model_fields:
            raise InvalidSetting(f"{short} has no budget: it keeps everything.", "Leave the budget out.")
        given["budget"] = budget
    built = build(methods[short].name, given)
    assert isinstance(built, CacheMethod)
    return built


def step_method(name: str, settings: Mapping[str, Any] | None = None) -> StepMethod:
    """A step cache by name, such as "fora", with its settings.

    Raises:
        UnknownName: there is no such step cache or setting; the hint is the nearest one.
        InvalidSetting: a value out of range.
    """
    methods = {key: method for key, method in registry().items() if issubclass(method, StepMethod)}
    short = name.removeprefix(STEP_FAMILY)
    if STEP_FAMILY + short not in methods:
        known = [key.removeprefix(STEP_FAMILY) for key in methods]
        raise UnknownName.among("step cache", name, known)
    built = build(STEP_FAMILY + short, dict(settings or {}))
    assert isinstance(built, StepMethod)
    return built


def saved_policies(model: str | Path) -> Policies:
    """The policies that a recipe saved beside the weights of a model; there may be none.

        model = modicum.load("out")
        with modicum.saved_policies("out").attach(model):
            images = model.generate([3, 8])

    Args:
        model: a directory, a nano model's name, or a hub id.

    Raises:
        CheckpointError: policies.json is damaged, something else, or of another version.
    """
    return Policies.read(locate(model))


@overload
def fit_policy(model: NextScaleModel, method: CacheMethod, wanted: Request | None = None) -> CachePolicy: ...
@overload
def fit_policy(model: nn.Module, method: StepMethod) -> StepPolicy: ...
def fit_policy(model: nn.Module, method: RuntimeMethod, wanted: Request | None = None) -> Policy:
    """Fit a policy to a model.

    Args:
        model: VAR or Infinity for a cache policy, DiT or SiT for a step cache.
        method: with its settings; `rows`, unless set, is taken from the request where the budget is in bytes.
        wanted: what will be drawn; ScaleKV measures on four images (see `calibration`). A VAR can do without.

    Raises:
        InvalidSetting: a budget below what the policy keeps in any case, or above all there is.
        UnusableData: there is something to measure and nothing to measure it with.
        UnsupportedModel: the method does not run this model.
    """
    if not isinstance(model, NextScaleModel):
        return method.fit(Anatomy.of(model), Context(torch.Generator().manual_seed(0)))
    if wanted is None and isinstance(model, VAR):
        wanted = request(model)
    budget = getattr(method, "budget", None)
    if wanted and budget and parse_budget(budget).unit == "bytes" and "rows" not in method.model_fields_set:
        images = min(wanted.at_once, len(wanted.seeds))
        method = method.model_copy(update={"rows": images * (2 if guided(model, wanted) else 1)})
    context = Context(
        torch.Generator().manual_seed(0),
        device=device_of(model),
        dtype=model.dtype,
        batches=calibration(model, wanted) if wanted else [],
    )
    return method.fit(Anatomy.of(model), context)


def fitting_batches(model: nn.Module) -> list[dict[str, Any]]:
    """What a VAR draws while a recipe's policy is fitted to it; nothing for models that need no images, or prompts."""
    return calibration(model, request(model)) if isinstance(model, VAR) else []


def read_policy(file: str | Path, model: NextScaleModel) -> CachePolicy:
    """A policy that `CachePolicy.to_json` wrote, or a published budget file of ScaleKV.

    Args:
        file: JSON.
        model: that it is to be used with.

    Raises:
        CheckpointError: it cannot be read, is neither, or is damaged.
        InvalidSetting: it was made for a model of another depth, or for other token maps.
    """
    data = read_json(Path(file), "a cache policy")
    if not any(key.startswith(PUBLISHED) for key in data):
        policy = policy_from_json(data)
        with policy.attach(model):  # refuses another depth before anything is drawn
            return policy
    drafters, budget = read_budget(file, model.schedule, model.shape.layers)
    last = len(model.schedule) - 1
    uniform = budget.total(last) // budget.layers
    return CachePolicy(ScaleKV(budget=str(uniform), drafters=tuple(drafters)), budget, uniform)


def split_settings(names: Iterable[str], settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Which settings belong to which policy.

    Args:
        names: short names of policies.
        settings: KEY, for every policy that has it, or POLICY.KEY.

    Raises:
        UnknownName: no policy of these names, or a setting that none of them has.
    """
    fields = {name: cache_method(name).model_fields for name in names}
    split: dict[str, dict[str, Any]] = {name: {} for name in fields}
    for path, value in settings.items():
        owner, _, key = path.removeprefix(FAMILY).rpartition(".")
        takers = [name for name in fields if owner in ("", name) and key in fields[name]]
        if not takers:
            known = {key for name in fields if owner in ("", name) for key in fields[name]}
            raise UnknownName.among(f"setting of {owner or ' or '.join(fields)}", key, known)
        for name in takers:
            split[name][key] = value
    return split
