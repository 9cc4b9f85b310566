"""Which plan belongs to which model and recipe."""

from __future__ import annotations

from pathlib import Path

import torch

from modicum.models.cifar_resnet import CifarResNetConfig
from modicum.models.class_models import class_kind
from modicum.pipeline.composition import split_steps
from modicum.pipeline.dense import dense_source
from modicum.pipeline.loading import refuse_images
from modicum.pipeline.outline import Outline
from modicum.pipeline.plan import Format, Plan, make_plan
from modicum.pipeline.recipe import Recipe
from modicum.pipeline.source import Source
from modicum.pipeline.storage_plan import StoragePlan, make_storage_plan
from modicum.pipeline.whole import model_type
from modicum.pipeline.whole_plan import WholePlan, make_whole_plan


def planned(
    directory: Path, recipe: Recipe, dtype: torch.dtype | None, device: str, form: Format
) -> Plan | WholePlan:
    """What a run of these steps, which all change weights, would do.

    Raises:
        UnsupportedModel: a step over the whole of a next-scale model.
    """
    whole = split_steps(recipe.steps).whole
    if class_kind(directory):
        return make_whole_plan(Outline.of_classes(directory), recipe, str(directory), form)
    if whole and model_type(directory) == CifarResNetConfig.model_type:
        return make_whole_plan(Outline.of_cifar(directory), recipe, str(directory), form)
    if whole:
        refuse_images(
            directory, "A step over the whole model", "Open it with modicum.load and change it in memory."
        )
    source = Source.open(directory, dtype, device)
    if not whole:
        return layers_planned(source, recipe, form)
    outline = Outline.of_source(source)
    return make_whole_plan(outline, recipe, str(directory), form, _length(source, recipe))


def storage_planned(
    directory: Path, recipe: Recipe, dtype: torch.dtype | None, device: str, form: Format
) -> Plan | WholePlan | StoragePlan:
    """What a run of these steps would do, which change weights or, the last of them, how they are stored."""
    steps = split_steps(recipe.steps)
    changing = recipe.model_copy(update={"steps": steps.weights})
    if not steps.storage:
        return planned(directory, changing, dtype, device, form)
    before = planned(directory, changing, dtype, device, "plain") if steps.weights else None
    return make_storage_plan(dense_source(directory), steps.storage[0], before)


def layers_planned(source: Source, recipe: Recipe, form: Format) -> Plan:
    """What a run of layer steps over an opened checkpoint would do."""
    return make_plan(source, recipe, form, (recipe.calibration.samples, _length(source, recipe)))


def _length(source: Source, recipe: Recipe) -> int:
    """Tokens of each calibration window."""
    wanted = recipe.calibration.length
    context = getattr(source.model.config, "max_position_embeddings", None)
    return min(wanted, context or wanted)
