"""Runs that begin with steps over the whole model, the data for them, and recovery."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modicum.data.samples import Samples, Table
from modicum.errors import InvalidSetting, UnusableData
from modicum.formats.manifest import Manifest
from modicum.method import Context, ModelMethod
from modicum.models import Anatomy
from modicum.models.class_models import class_config, class_kind, network_of
from modicum.pipeline.calibration import calibration_tokens
from modicum.pipeline.composition import split_steps
from modicum.pipeline.loading import load_tokenizer
from modicum.pipeline.promises import Promised
from modicum.pipeline.recipe import Recipe
from modicum.pipeline.run import check_device
from modicum.pipeline.source import Source, read_config
from modicum.pipeline.training_data import check_pictures, file_samples, text_samples
from modicum.pipeline.whole_run import WholeRun, transform
from modicum.trainer import Objective
from modicum.zoo.digit_samples import DigitSamples, draws_digits
from modicum.zoo.locate import locate

DEFAULT_SOURCE = "stdlib"


def prepare_whole(
    model: str | Path,
    recipe: Recipe,
    out: str | Path,
    *,
    data: Samples | None = None,
    teacher: str | Path | None = None,
    device: str = "cpu",
    **options: Any,
) -> WholeRun:
    """A run with steps over the whole model, checked but not begun.

    Args:
        model: a directory, a nano model's name, or a hub id.
        recipe: steps over the whole model, then layer steps, if any.
        out: the directory to write.
        data: training samples; by default those of the recipe's calibration source.
        teacher: the model to learn from; the original by default.
        device: where to work.
        **options: dtype, form, overwrite, offload and progress, as of `prepare`.
    """
    check_device(device)
    directory = network_of(locate(model))
    wanted = _samples_read(directory, recipe)
    if wanted and data is None:
        data = training_data(directory, recipe, wanted)
    if isinstance(data, Table) and class_kind(directory):
        check_pictures(data, class_config(directory), recipe.calibration.source)
    return WholeRun(
        directory,
        recipe,
        Path(out),
        data,
        None if teacher is None else network_of(locate(teacher)),
        layer_windows,
        device=device,
        **options,
    )


def _samples_read(directory: Path, recipe: Recipe) -> int:
    """How many samples the steps of a recipe read; layers of models that draw classes are calibrated on some too."""
    whole, layers, *_ = split_steps(recipe.steps)
    counts = [step.samples_read() for step in whole]
    if class_kind(directory) and any(step.statistics() or step.inputs() for step in layers):
        counts.append(recipe.calibration.samples)
    return max(counts, default=0)


def recover(
    model: str | Path,
    recipe: Recipe,
    out: str | Path,
    *,
    teacher: str | Path | None = None,
    **options: Any,
) -> Manifest:
    """Train a compressed model to give back what compression took.

    Args:
        model: the compressed model: a directory, a nano model's name, or a hub id.
        recipe: one training step, such as `MaskedKD(...)`.
        out: the directory to write.
        teacher: the model to learn from; needed by methods that distil.
        **options: of `prepare_whole`.

    Raises:
        InvalidSetting: the step does not train, or it needs a teacher and there is none.
    """
    return prepare_recovery(model, recipe, out, teacher=teacher, **options).execute()


def prepare_recovery(
    model: str | Path, recipe: Recipe, out: str | Path, *, teacher: str | Path | None = None, **options: Any
) -> WholeRun:
    """As `recover`, checked but not begun."""
    for step in recipe.steps:
        if not isinstance(step, ModelMethod) or not step.name.startswith("distill."):
            raise InvalidSetting(
                f"{step.name} recovers nothing.", "Choose distill.masked_kd or distill.finetune."
            )
        if step.asks_teacher and teacher is None:
            raise InvalidSetting(f"{step.name} needs a teacher.", "Name the original with --teacher.")
    return prepare_whole(model, recipe, out, teacher=teacher, **options)


def transform_loaded(
    model: nn.Module,
    recipe: Recipe,
    data: Samples | None = None,
    *,
    teacher: nn.Module | None = None,
    objective: Objective | None = None,
    work: str | Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
    promised: Promised | None = None,
) -> dict[str, dict[str, Any]]:
    """Run steps over the whole model on one that is in memory, in place.

    Args:
        model: on its device, with float32 weights if a step trains.
        recipe: steps over the whole model.
        data: what they read.
        teacher: for steps that learn from one.
        objective: the loss that they train with; that of the model's kind by default.
        work: directory for checkpoints of trainings; none are kept by default.
        progress: receives lines.
        promised: what holds for the layers of the model, and must go on to hold.

    Returns:
        What the steps found out, by their name.
    """
    whole = split_steps(recipe.steps).whole
    device = next(model.parameters()).device
    notes: dict[str, dict[str, Any]] = {}

    def context(index: int) -> Context:
        generator = torch.Generator().manual_seed(recipe.seed)
        place = None if work is None else Path(work) / f"step-{index}"
        return Context(
            generator, device, torch.float32, work_directory=place, progress=progress, data=data,
            objective=objective, teacher=teacher, notes=notes,
        )  # fmt: skip

    transform(Anatomy.of(model), whole, context, promised)
    return notes


def training_data(directory: Path, recipe: Recipe, wanted: int) -> Samples:
    """The samples that a recipe's calibration source stands for.

    Args:
        directory: of the model.
        recipe: its calibration names the source: a safetensors file of rows, a text for language models; the default
            is the standard library for language models and handwritten digits for diffusion models that draw them.
        wanted: samples that will be read, repetitions counted.

    Raises:
        UnusableData: the source does not fit the model.
    """
    source = recipe.calibration.source
    if source.endswith(".safetensors"):
        return file_samples(Path(source))
    if class_kind(directory):
        config = class_config(directory)
        if source == DEFAULT_SOURCE and draws_digits(config):
            return DigitSamples(config)
        raise UnusableData(
            f"{source!r} is no data for a model that draws classes.",
            "Name a .safetensors file with x0 (latents) and y (labels), one row per picture.",
        )
    context = getattr(read_config(directory), "max_position_embeddings", None)
    length = min(recipe.calibration.length, context or recipe.calibration.length)
    return text_samples(source, load_tokenizer(directory), length, wanted, recipe.seed)


def layer_windows(source: Source, recipe: Recipe) -> Tensor | None:
    """Calibration windows of layer steps; None if no step needs data."""
    layers = split_steps(recipe.steps).layers
    if not any(step.statistics() or step.inputs() for step in layers):
        return None
    file = recipe.calibration.source.endswith(".safetensors")
    tokenizer = None if file else load_tokenizer(source.directory)
    context = getattr(source.model.config, "max_position_embeddings", None)
    return calibration_tokens(recipe.calibration, tokenizer, context, recipe.seed)
