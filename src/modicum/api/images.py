"""Models that draw: fit a cache policy, compare policies on the same images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modicum.api.inputs import request
from modicum.api.loading import load
from modicum.api.policies import FAMILY, cache_method, fit_policy, split_settings
from modicum.cache import CacheMethod, CachePolicy
from modicum.errors import UnsupportedModel
from modicum.evaluate import environment
from modicum.evaluate.cache_comparison import CacheComparison
from modicum.evaluate.compare_caches import Candidate, Features, compare_caches
from modicum.evaluate.drawing import Request
from modicum.evaluate.inference import device_of
from modicum.models.next_scale import NextScaleModel
from modicum.zoo.digits import load_judge
from modicum.zoo.locate import locate

FULL = "full"


def load_drawer(
    model: str | Path,
    *,
    text_encoder: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> NextScaleModel:
    """Open a model that draws images map by map; arguments as for `load`.

    Raises:
        UnsupportedModel: it does not draw.
    """
    opened = load(model, dtype=dtype, device=device, text_encoder=text_encoder)
    if not isinstance(opened, NextScaleModel):
        raise UnsupportedModel(
            f"{Path(model).name} does not draw images map by map.",
            "Give a VAR or Infinity model, or nano-var.",
        )
    return opened


def compare_kv(
    model: str | Path | NextScaleModel,
    policies: Sequence[str] = ("snapkv", "scalekv"),
    budgets: Sequence[str] = ("10%",),
    *,
    settings: Mapping[str, Any] | None = None,
    features: Features | None = None,
    rounds: int = 3,
    text_encoder: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    command: str | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
    **wanted: Any,
) -> tuple[CacheComparison, list[Tensor]]:
    """Draw the same images with the full cache and under cache policies, and measure what each costs and brings.

    Args:
        model: a directory, a nano model's name, a hub id, or an opened model.
        policies: short names; the full cache is always there, as the reference.
        budgets: of every policy that has one: "10%", "650" (tokens), "8GB".
        settings: KEY, for every policy that has it, or POLICY.KEY.
        features: feature space of the Frechet distance; by default that of the model's judge, which nano-var has.
        rounds: how often every batch is timed.
        text_encoder: directory of flan-t5-xl, for an Infinity that is not open yet.
        dtype: compute dtype, likewise.
        device: likewise.
        command: the command line that repeats this, for the report.
        progress: told how many batches are done, and of how many.
        **wanted: what to draw, see `modicum.api.inputs.request`: labels or prompts, count, seed, cfg and the like.

    Returns:
        The comparison, and the images float32 `[B, C, H, W]` of each of its entries.

    Raises:
        UnknownName: there is no such policy, setting or sampling setting.
        InvalidSetting: a value out of range, such as a budget below the window that a policy keeps.
    """
    opened = (
        model
        if isinstance(model, NextScaleModel)
        else load_drawer(model, text_encoder=text_encoder, dtype=dtype, device=device)
    )
    judge = None if isinstance(model, NextScaleModel) else load_judge(locate(model))
    drawn = request(opened, **wanted)
    candidates = _candidates(opened, policies, budgets, settings or {}, drawn)
    entries, images = compare_caches(
        opened,
        candidates,
        drawn,
        features=features or (judge.features if judge else None),
        rounds=rounds,
        progress=progress,
    )
    measured = next((each.policy.selectivity for each in candidates if each.policy.selectivity), None)
    comparison = CacheComparison(
        name=type(opened).__name__ if isinstance(model, NextScaleModel) else locate(model).name,
        sizes=drawn.schedule.sizes,
        entries=tuple(entries),
        images=len(drawn.seeds),
        at_once=min(drawn.at_once, len(drawn.seeds)),
        seeds=drawn.seeds,
        captions=drawn.captions,
        sampling={key: value for key, value in drawn.settings.items() if key != "negative"},
        rounds=rounds,
        feature_space="given" if features else "the model's judge" if judge else None,
        selectivity=measured.asi.tolist() if measured else None,
        command=command,
        environment=environment(device_of(opened)),
    )
    return comparison, images


def _candidates(
    model: NextScaleModel,
    policies: Sequence[str],
    budgets: Sequence[str],
    settings: Mapping[str, Any],
    wanted: Request,
) -> list[Candidate[CachePolicy]]:
    """The full cache, then all policies at the first budget, at the second, ..."""
    names = [name.removeprefix(FAMILY) for name in dict.fromkeys(policies)]
    split = split_settings(names, settings)
    methods: list[tuple[str, str | None, CacheMethod]] = [
        (FULL, None, cache_method(FULL, settings=split.get(FULL)))
    ]
    methods += [
        (name, budget, cache_method(name, budget, split[name]))
        for budget in budgets
        for name in split
        if name != FULL
    ]
    return [_candidate(model, name, budget, method, wanted) for name, budget, method in methods]


def _candidate(
    model: NextScaleModel, name: str, budget: str | None, method: CacheMethod, wanted: Request
) -> Candidate[CachePolicy]:
    policy = fit_policy(model, method, wanted)
    drafters = getattr(policy.method, "drafters", None)
    facts = {
        "policy": name,
        "budget": budget,
        "settings": method.settings(),
        "tokens": policy.table(wanted.schedule).tokens,
        "drafters": drafters if isinstance(drafters, tuple) else (),
    }
    return Candidate(policy, facts)
