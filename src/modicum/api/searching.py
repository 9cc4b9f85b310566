"""Searches over models that are named as everywhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from modicum.errors import InvalidSetting, UnsupportedModel
from modicum.method import readable
from modicum.models.class_models import class_kind
from modicum.models.image_models import image_kind
from modicum.search.found import Asked, MetricSearch, Settings, SparsitySearch, SparsitySettings
from modicum.search.prune_metric import search_metric
from modicum.search.session import Hands, Told
from modicum.search.sparsity import search_sparsity as search_shares
from modicum.zoo.locate import locate

S = TypeVar("S", bound=Asked)


def search_prune_metric(
    model: str | Path,
    out: str | Path,
    *,
    workers: int = 1,
    ray: str | None = None,
    progress: Told = lambda latest, best: None,
    **settings: Any,
) -> MetricSearch:
    """Search for a formula that says which weights of a language model can go; an interrupted search goes on.

    Args:
        model: a directory, a nano model's name, or a hub id.
        out: directory of the log and of the best metric as a recipe.
        workers: processes (or actors on the cluster); the result does not depend on it.
        ray: address of a Ray cluster.
        progress: called with every candidate and the best one so far.
        **settings: fields of `modicum.search.found.Settings`.

    Raises:
        InvalidSetting: a setting out of range.
        OutputExists: `out` holds another search.
        UnsupportedModel: the model draws images.
    """
    asked = _asked(Settings, settings, "prune-metric")
    return search_metric(_language_model(model), Path(out), asked, Hands(workers, ray), progress)


def search_sparsity(
    model: str | Path,
    out: str | Path,
    *,
    workers: int = 1,
    ray: str | None = None,
    progress: Told = lambda latest, best: None,
    **settings: Any,
) -> SparsitySearch:
    """Search for a sparsity per block of a language model at a fixed mean; an interrupted search goes on.

    Args:
        model: a directory, a nano model's name, or a hub id.
        out: directory of the log and of the best sparsities, as a table and as a recipe.
        workers: processes (or actors on the cluster); the result does not depend on it.
        ray: address of a Ray cluster.
        progress: called with every candidate and the best one so far.
        **settings: fields of `modicum.search.found.SparsitySettings`.

    Raises:
        InvalidSetting: a setting out of range, or a method that gives weights no scores.
        UnknownName: there is no such method or no such setting of it.
        OutputExists: `out` holds another search.
        UnsupportedModel: the model draws images.
    """
    asked = _asked(SparsitySettings, settings, "sparsity")
    return search_shares(_language_model(model), Path(out), asked, Hands(workers, ray), progress)


def _asked(kind: type[S], settings: dict[str, Any], command: str) -> S:
    try:
        return kind(**settings)
    except ValidationError as error:
        raise InvalidSetting(readable(error), f"See `modicum search {command} --help`.") from error


def _language_model(model: str | Path) -> Path:
    directory = locate(model)
    if image_kind(directory) or class_kind(directory):
        raise UnsupportedModel(
            f"A search for what to prune needs a language model; {directory.name} draws images.",
            "Search on nano-lm, for example.",
        )
    return directory
