"""The same sweep over a model that is already in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from modicum.errors import UnusableData
from modicum.kernels.products import widened_products
from modicum.models import Anatomy, Layer, capture
from modicum.models.replay import Batch, entering
from modicum.pipeline.footprint import BATCH_TOKENS
from modicum.pipeline.gradients import loaded_gradients
from modicum.pipeline.outliers import loaded_outliers
from modicum.pipeline.plan import layer_steps
from modicum.pipeline.promises import Promised, live_of
from modicum.pipeline.recipe import Recipe
from modicum.pipeline.run import Progress, Silent, advance, calibrate
from modicum.pipeline.sharing import with_outliers, with_tables
from modicum.pipeline.sweep import Steps, sweep_block, touching
from modicum.weights.base import WeightForm

Batches = Tensor | Iterable[Batch]
Deliver = Callable[[Layer, WeightForm], None]
"""What is to become of the form of a layer, once its block is finished."""


def compress_model(
    model: nn.Module,
    recipe: Recipe,
    data: Batches | None = None,
    progress: Progress | None = None,
    promised: Promised | None = None,
) -> dict[str, dict[str, Any]]:
    """Compress a loaded model in place; packed layers are exchanged for their forms.

    Args:
        model: a model that `Anatomy` describes, on its device.
        recipe: the steps; of its `calibration` only `propagate_error` is read.
        data: token windows, int64 [windows, length]; or batches of the model's inputs, or functions that run it once
            (`modicum.trainer.questions.passes`). None if no step needs data. Positions where a batch's
            `attention_mask` is 0 are left out of the statistics.
        progress: who to tell.
        promised: what holds for its layers already, and must go on to hold.

    Returns:
        What became of each touched layer.

    Raises:
        UnusableData: a step needs data and there is none.
        RecipeConflict: steps that cannot follow each other.
    """

    def exchange(layer: Layer, form: WeightForm) -> None:
        if not form.expand_on_load:
            layer.replace(form)

    return sweep_model(model, recipe, data, progress, exchange, promised)


@torch.no_grad()
@widened_products()
def sweep_model(
    model: nn.Module,
    recipe: Recipe,
    data: Batches | None,
    progress: Progress | None,
    deliver: Deliver,
    promised: Promised | None = None,
) -> dict[str, dict[str, Any]]:
    """As `compress_model`, with the forms going to `deliver`; the layers hold their decoded values already."""
    anatomy, told = Anatomy.of(model), progress or Silent()
    steps: Steps = with_tables(layer_steps(recipe), anatomy)
    live = live_of(steps, anatomy.layers(), promised or {})
    _check_shapes(steps, anatomy)
    hungry = [step.name for step in steps if step.statistics() or step.inputs()]
    if hungry and data is None:
        raise UnusableData(f"{hungry[0]} needs calibration data.", "Pass data=..., token windows or batches.")
    batches = _batches(data, next(model.parameters()).device) if hungry and data is not None else []
    masks = [_mask(batch) for batch in batches]
    if outliers := loaded_outliers(anatomy, steps, batches, masks):
        steps = with_outliers(steps, anatomy, outliers)
        live = live_of(steps, anatomy.layers(), promised or {})
    gradients = loaded_gradients(anatomy, steps, batches)
    replay = capture(anatomy, batches, seams=True) if batches else None
    hidden = list(replay.hidden) if replay else []
    replay = replace(replay, hidden=()) if replay else None
    records: dict[str, dict[str, Any]] = {}
    ends = {*(replay.seams if replay else ()), len(anatomy.blocks)}
    for block in anatomy.blocks:
        told.working(block.index, "collecting statistics")
        if replay is not None and block.index in replay.seams:
            hidden = entering(anatomy, batches, block.index)
        onward = not recipe.calibration.propagate_error and block.index + 1 not in ends
        calibrated = calibrate(steps, block, replay, hidden, masks, onward=onward)
        own = {layer.name: gradients.pop(layer.name) for layer in block.layers if layer.name in gradients}
        calibrated.add_gradients(own, sum(states[..., 0].numel() for states in hidden))
        swept = sweep_block(steps, calibrated, live)
        records |= swept.records
        if replay is not None and not onward and block.index + 1 not in ends:
            advance(replay, block, hidden)
        for layer in block.layers:
            if layer.name in swept.forms:
                deliver(layer, swept.forms[layer.name])
        told.finished(block.index)
    return records


def _check_shapes(steps: Steps, anatomy: Anatomy) -> None:
    """A shape that a step refuses is found before anything is changed."""
    for layer in anatomy.layers():
        weight = layer.weight.detach().to("meta")
        for step in touching(steps, layer):
            step.expected_form(weight)


def _batches(data: Batches, device: torch.device) -> list[Batch]:
    if isinstance(data, Tensor):
        data = data.split(max(1, BATCH_TOKENS // data.shape[1]))
    batches = [
        _placed({"input_ids": batch} if isinstance(batch, Tensor) else batch, device) for batch in data
    ]
    if not batches:
        raise UnusableData("The calibration data holds no batch.", "Pass at least one.")
    return batches


def _placed(batch: Batch, device: torch.device) -> Batch:
    if not isinstance(batch, Mapping):
        return batch
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def _mask(batch: Batch) -> Tensor | None:
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 and not bool(mask.all()) else None
