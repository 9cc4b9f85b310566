"""Compress a model, on disk or in memory, or say what a run would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modicum.api.planning import layers_planned, storage_planned
from modicum.api.policies import fitting_batches
from modicum.api.training import layer_windows, prepare_whole, transform_loaded
from modicum.data.samples import Samples, Table
from modicum.errors import InvalidSetting, RecipeConflict
from modicum.formats.manifest import Manifest
from modicum.method import Method
from modicum.models import Anatomy
from modicum.models.class_models import class_kind, network_of
from modicum.pipeline import recipe as recipes
from modicum.pipeline.composition import live_properties, split_steps
from modicum.pipeline.memory_run import Batches, compress_model
from modicum.pipeline.plan import Format, Plan, layer_steps
from modicum.pipeline.policy_run import PolicyRun
from modicum.pipeline.promises import Promised, promised_by
from modicum.pipeline.recipe import Recipe
from modicum.pipeline.run import Progress, Run, Silent, check_device
from modicum.pipeline.source import Source
from modicum.pipeline.storage_plan import StoragePlan
from modicum.pipeline.storage_run import StorageRun
from modicum.pipeline.whole_plan import WholePlan
from modicum.pipeline.whole_run import WholeRun, sweeps
from modicum.trainer.objective import Objective
from modicum.trainer.objectives import objective_of
from modicum.trainer.questions import passes
from modicum.zoo.locate import locate

RecipeLike = Recipe | Method | str | Path | Mapping[str, Any] | Sequence[Any]


def as_recipe(value: RecipeLike) -> Recipe:
    """A recipe from a recipe, a method, the path of a YAML file, a method's name, or plain values."""
    if isinstance(value, Recipe):
        return value
    if isinstance(value, Method):
        return Recipe.of(value)
    if isinstance(value, Path) or (isinstance(value, str) and value.endswith((".yaml", ".yml"))):
        return recipes.load(Path(value))
    if isinstance(value, str):
        return recipes.parse([value])
    if isinstance(value, Sequence) and value and all(isinstance(step, Method) for step in value):
        return Recipe(steps=tuple(value))
    return recipes.parse(value)


def prepare(
    model: str | Path,
    recipe: RecipeLike,
    out: str | Path,
    *,
    data: Tensor | Samples | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    form: Format = "auto",
    overwrite: bool = False,
    offload: bool = False,
    progress: Progress | None = None,
) -> Run | WholeRun | StorageRun | PolicyRun:
    """A run that is planned and checked but not begun: `run.plan` says what it will do, `run.execute()` does it.

    Args:
        model: a directory, a nano model's name, or a hub id.
        recipe: the steps (see `as_recipe`).
        out: the directory to write.
        data: calibration windows, int64 [windows, length], or samples for steps over the whole model; drawn as the
            recipe says by default.
        dtype: compute dtype; that of the checkpoint by default.
        device: where a block is worked on.
        form: storage format: auto, plain, compressed-tensors or modicum.
        overwrite: replace `out` if it exists.
        offload: keep the calibration's hidden states on disk.
        progress: who to tell.
    """
    check_device(device)
    whole = as_recipe(recipe)
    told = progress or Silent()

    def changing_weights(
        steps: Recipe, where: Path, replacing: bool = False, form: Format = form
    ) -> Run | WholeRun:
        if split_steps(steps.steps).whole or class_kind(locate(model)):
            return prepare_whole(
                model, steps, where, data=_samples(data), dtype=dtype, device=device, form=form,
                overwrite=replacing, offload=offload, progress=told,
            )  # fmt: skip
        if isinstance(data, Samples):
            raise InvalidSetting("Layer steps are calibrated with token windows.", "Pass an int64 tensor.")
        source = Source.open(locate(model), dtype, device)
        layers_planned(source, steps, form)  # what cannot work is refused before any text is read
        tokens = data if data is not None else layer_windows(source, steps)
        return Run(source, steps, where, tokens, form, replacing, offload, told)

    def written(steps: Recipe, where: Path, replacing: bool = False) -> Run | WholeRun | StorageRun:
        if not split_steps(steps.steps).storage:
            return changing_weights(steps, where, replacing)
        dense = partial(changing_weights, form="plain")
        return StorageRun(locate(model), steps, where, dense, replacing, told)

    if not split_steps(whole.steps).runtime:
        return written(whole, Path(out), overwrite)
    return PolicyRun(
        locate(model), whole, Path(out), written, fitting_batches, dtype, device, overwrite, told
    )


def _samples(data: Tensor | Samples | None) -> Samples | None:
    """Windows of tokens as samples."""
    return Table({"input_ids": data}) if isinstance(data, Tensor) else data


def compress(
    model: nn.Module | str | Path,
    recipe: RecipeLike,
    *,
    out: str | Path | None = None,
    data: Batches | Samples | None = None,
    **options: Any,
) -> nn.Module | Manifest:
    """Compress a model.

    Args:
        model: a loaded model (compressed in place and returned), or a directory, nano model or hub id (read block
            by block, written to `out`).
        recipe: a Recipe, a method, a YAML file, a method's name, or a list of steps.
        out: the directory to write; for a model on disk.
        data: token windows [windows, length]; for a loaded model batches of its inputs; for steps over the whole
            model, and for models that draw classes, training samples.
        **options: of `prepare`; for a loaded model teacher, objective, work and progress.

    Returns:
        The model, or the content of modicum.json of the written directory.
    """
    if isinstance(model, nn.Module):
        _compress_loaded(model, as_recipe(recipe), data, options)
        return model
    if out is None:
        raise InvalidSetting("A model on disk is compressed into a directory.", "Pass out='DIRECTORY'.")
    if data is not None and not isinstance(data, Tensor | Samples):
        raise InvalidSetting("A model on disk is calibrated with token windows.", "Pass an int64 tensor.")
    return prepare(model, recipe, out, data=data, **options).execute()


def _compress_loaded(
    model: nn.Module, recipe: Recipe, data: Batches | Samples | None, options: dict[str, Any]
) -> None:
    whole, layers, storage, runtime, stages = split_steps(recipe.steps)
    if storage:
        raise RecipeConflict(
            f"{storage[0].name} codes files, and this model is in memory.",
            "Save it with modicum.save, and compress the directory.",
        )
    if runtime:
        raise RecipeConflict(
            f"{runtime[0].name} leaves a policy and no other weights.",
            "Fit it with modicum.fit_policy(model, method), and attach what that gives.",
        )
    if whole and layers and not isinstance(data, Samples):
        raise RecipeConflict(
            f"{whole[0].name} and {layers[0].name} read different data of a loaded model.",
            "Pass training samples (modicum.data.samples), which both can read, or compress it twice.",
        )
    if whole:
        live_properties(recipe.steps)
    promised: Promised = {}
    for index, stage in enumerate(stages):
        part, start = recipe.model_copy(update={"steps": stage}), promised
        if sweeps(stage):
            told = None if whole else options.get("progress")
            promised = promised_by(layer_steps(part), Anatomy.of(model).layers(), start)
            compress_model(model, part, _asked(model, recipe, data, options.get("objective")), told, start)
        else:
            samples = data if data is None or isinstance(data, Samples) else _samples(torch.as_tensor(data))
            work = options.get("work")
            place = work if work is None or index == 0 else Path(work) / f"stage-{index}"
            transform_loaded(model, part, samples, promised=start, **{**options, "work": place})


def _asked(
    model: nn.Module, recipe: Recipe, data: Batches | Samples | None, objective: Objective | None
) -> Batches | None:
    """What layers are calibrated on: training samples become the questions of the model's own objective."""
    if not isinstance(data, Samples):
        return data
    asking = objective or objective_of(model)
    return passes(model, asking, data, recipe.calibration.samples, recipe.seed)


def plan(
    model: str | Path,
    recipe: RecipeLike,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    form: Format = "auto",
) -> Plan | WholePlan | StoragePlan:
    """What a run would do and need; arguments as for `prepare`.

    Layer steps are planned from config and headers alone, storage steps from a sample of the weights as well. Runtime
    steps change no weight, so they are left out. With steps over the whole model, and for models that draw classes,
    the plan says less and names what is not known.

    Raises:
        RecipeConflict: no step changes a weight or how it is stored.
    """
    check_device(device)
    steps = as_recipe(recipe)
    if not split_steps(steps.steps).written:
        raise RecipeConflict(
            "The recipe leaves all weights as they are, so there is nothing to plan.",
            "Run it: modicum compress.",
        )
    return storage_planned(network_of(locate(model)), steps, dtype, device, form)
