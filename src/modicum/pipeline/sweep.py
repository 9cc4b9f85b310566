"""The work on one block: observe it, run every layer step over it, keep the promises, write the record.

All adjacent layer steps of a recipe share one pass over the calibration data. Every step sees the weights as the
previous one left them; the running model sees them too, so that what later blocks are calibrated on is what the
compressed model will really compute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from modicum.calibrate.block import CalibratedBlock
from modicum.calibrate.statistics import Statistics
from modicum.errors import NotFinite, PromiseBroken
from modicum.kernels.checks import all_finite, relative_error
from modicum.kernels.compensation import NotPositiveDefinite
from modicum.method import LayerMethod, Method, Target
from modicum.models import Block, Layer
from modicum.prune.sparse import Sparse
from modicum.weights.base import WeightForm
from modicum.weights.properties import Property, ZeroMask

Steps = Sequence[LayerMethod]


@dataclass
class Swept:
    """What the steps made of one block: a form and a record per touched layer."""

    forms: dict[str, WeightForm] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)


def touching(steps: Steps, layer: Layer) -> tuple[LayerMethod, ...]:
    """The steps that apply to a layer, in order, with the settings that they have for it."""
    return tuple(step.of_layer(layer.name) for step in steps if step.touches(layer.name, layer.role))


def wanted_statistics(steps: Steps, block: Block) -> dict[str, frozenset[str]]:
    """Statistics by layer name; layers that need none are left out."""
    wanted = {
        layer.name: frozenset().union(*(step.statistics() for step in touching(steps, layer)))
        for layer in block.layers
    }
    return {name: kinds for name, kinds in wanted.items() if kinds}


def observed_statistics(steps: Steps, block: Block) -> dict[str, frozenset[str]]:
    """Those of them that are seen when the block runs: all but gradients, which come from the whole dense model."""
    wanted = wanted_statistics(steps, block)
    return {name: seen for name, kinds in wanted.items() if (seen := kinds - {"gradient"})}


def reads_inputs(steps: Steps) -> bool:
    """Whether some step wants to know anything of what enters the layers."""
    return any(step.statistics() - {"gradient"} or step.inputs() for step in steps)


def replayed_parents(steps: Steps, block: Block) -> set[str]:
    """Sub-modules whose calls some step wants to replay."""
    return {fold.parent for fold in block.folds} if any(step.inputs() for step in steps) else set()


@torch.no_grad()
def sweep_block(
    steps: Steps,
    calibrated: CalibratedBlock,
    live: Mapping[str, Sequence[frozenset[Property]]],
    progress: Callable[[str], None] = lambda text: None,
) -> Swept:
    """Run all steps over one block, in place.

    Args:
        steps: layer methods, in order.
        calibrated: the block with what calibration saw.
        live: for each layer, the properties that hold before the first of the steps that touch it, and those that
            must hold after each.
        progress: called with the name of each layer before it is worked on.

    Raises:
        PromiseBroken: a property that should hold after a step does not.
    """
    swept, block = Swept(), calibrated.block
    touched = [layer for layer in block.layers if touching(steps, layer)]
    calibrated.references = {layer.name: layer.weight.detach().clone() for layer in touched}
    done = dict.fromkeys((layer.name for layer in touched), 0)
    for step in steps:
        step.prepare(calibrated)
        for layer in touched:
            if not step.touches(layer.name, layer.role):
                continue
            progress(f"{step.name}  {layer.name}")
            own, position = step.of_layer(layer.name), done[layer.name]
            held, promised = live[layer.name][position : position + 2]
            form, notes = _compress(own, layer, calibrated.layer_statistics(layer), held)
            dense = form.to_dense()
            _verify(step, layer, form, dense, held, promised)
            layer.set_weight(dense, form.bias)
            swept.forms[layer.name] = form
            swept.records.setdefault(layer.name, {}).update(notes)
            done[layer.name] += 1
    for layer in touched:
        record = _record(layer, swept.forms[layer.name], calibrated)
        swept.records[layer.name] = {**record, **swept.records[layer.name]}
    return swept


def _compress(
    step: LayerMethod, layer: Layer, statistics: Statistics, held: frozenset[Property]
) -> tuple[WeightForm, dict[str, Any]]:
    """The form of one layer, and notes on what did not go as planned."""
    weight = layer.weight.detach()
    zeros = weight == 0 if any(isinstance(p, ZeroMask) for p in held) else None
    target = Target(layer.name, layer.role, weight, layer.bias, zeros)
    notes: dict[str, Any] = {}
    if isinstance(step, Sparse) and step.shared:
        notes["target_sparsity"] = round(step.sparsity, 6)
    if step.statistics() and not statistics.tokens:
        notes["note"] = "no calibration token reached this layer; it was treated as if all inputs were alike"
    try:
        return step.compress(target, statistics), notes
    except NotPositiveDefinite:
        noise = Statistics.of_white_noise(statistics.wanted, layer.in_features, weight.device)
        notes["note"] = "the Gram matrix has no Cholesky factor; it was treated as if all inputs were alike"
        return step.compress(target, noise), notes


def _verify(
    step: LayerMethod,
    layer: Layer,
    form: WeightForm,
    dense: Tensor,
    held: frozenset[Property],
    promised: frozenset[Property],
) -> None:
    """Hold the result of a step against what was promised.

    Raises:
        PromiseBroken: names the step, the layer and the property.
        NotFinite: the result holds NaN or infinity.
    """
    before = layer.weight.detach()
    if not all_finite(dense):
        raise NotFinite(
            f"{step.name} made NaN or infinity at {layer.name}.", "Raise its damping, or leave it out."
        )
    for promise in promised:
        if promise == ZeroMask() and promise not in held:
            continue  # a new mask is whatever is zero now
        check_promise(step, layer, promise, before if promise in held else dense, form)


def check_promise(step: Method, layer: Layer, promise: Property, before: Tensor, form: WeightForm) -> None:
    """Hold what a step left of a layer against one property.

    Args:
        step: that was run.
        layer: that it changed.
        promise: what must hold.
        before: [out, in] the layer before it; bool will do where only zeros matter.
        form: the layer after it.

    Raises:
        PromiseBroken: names the step, the layer and the property.
    """
    complaint = promise.violation(before, form)
    if complaint:
        raise PromiseBroken(
            f"After {step.name}, {layer.name} no longer has {promise.name}: {complaint}.",
            "Nothing of it was written. This is a defect of the method; please report it.",
        )


def _record(layer: Layer, form: WeightForm, calibrated: CalibratedBlock) -> dict[str, Any]:
    """What modicum.json says of a layer."""
    reference, dense = calibrated.references[layer.name], layer.weight.detach()
    size = layer.out_features * layer.in_features
    record: dict[str, Any] = {
        "block": layer.block,
        "role": layer.role,
        "nbytes": form.nbytes,
        "dense_nbytes": size * layer.weight.element_size(),
        "sparsity": round(1 - int(dense.count_nonzero()) / size, 6),
        "bits_per_weight": round(8 * form.nbytes / size, 4),
        "weight_error": _six_digits(relative_error(dense, reference)),
    }
    statistics = calibrated.layer_statistics(layer)
    if statistics.wanted & {"column_norm", "gram"}:
        error = relative_error(dense, reference, statistics.column_norm)
        record["output_error"] = _six_digits(error)
    return record


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}")
