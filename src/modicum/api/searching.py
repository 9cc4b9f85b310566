"""Searches over models that are named as everywhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from modicum.errors import InvalidSetting, UnsupportedModel
from modicum.method import readable
from modicum.models.class_models import class_kind
from modicum.models.image_models import image_kind
from modicum.search.found import MetricSearch, Settings
from modicum.search.prune_metric import Told, search_metric
from modicum.zoo.locate import locate


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
    try:
        asked = Settings(**settings)
    except ValidationError as error:
        raise InvalidSetting(readable(error), "See `modicum search prune-metric --help`.") from error
    directory = locate(model)
    if image_kind(directory) or class_kind(directory):
        raise UnsupportedModel(
            f"A search for a pruning metric needs a language model; {directory.name} draws images.",
            "Search on nano-lm, for example.",
        )
    return search_metric(directory, Path(out), asked, workers, ray, progress)
