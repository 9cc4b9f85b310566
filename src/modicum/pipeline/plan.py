"""What a run will do and need, said before it starts, from config and headers alone.

Sizes are exact: every layer's form is made on the meta device and asked for its bytes. Peak memory is an estimate,
see `modicum.pipeline.footprint`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from modicum.errors import InvalidSetting, RecipeConflict
from modicum.formats.compressed_tensors import expressible
from modicum.kernels.grids import IntegerScheme
from modicum.kernels.products import widened_products
from modicum.method import LayerMethod
from modicum.models import Layer
from modicum.pipeline.footprint import hidden_width, peak_memory
from modicum.pipeline.gradients import file_bytes
from modicum.pipeline.promises import live_of, recorded
from modicum.pipeline.recipe import Recipe
from modicum.pipeline.sharing import by_outliers, sentences, with_tables
from modicum.pipeline.source import Source
from modicum.pipeline.sweep import reads_inputs, touching
from modicum.weights.base import WeightForm
from modicum.weights.packed import PackedWeight
from modicum.weights.properties import Property

Format = Literal["auto", "plain", "compressed-tensors", "modicum"]


@dataclass(frozen=True)
class LayerPlan:
    """What happens to one layer."""

    name: str
    role: str
    block: int
    shape: tuple[int, int]
    steps: tuple[str, ...]
    form: WeightForm = field(repr=False, compare=False)
    before: int
    after: int

    def to_dict(self) -> dict[str, Any]:
        """Name, role, shape, steps and bytes as plain JSON values."""
        return {k: getattr(self, k) for k in ("name", "role", "shape", "steps", "before", "after")}


@dataclass(frozen=True)
class Plan:
    """What a run will do and need. All sizes in bytes.

    Attributes:
        layers: the layers that are touched.
        skipped: (name, reason) of the weight matrices that are not.
        format: how the result will be stored.
        weights_before: weight bytes of the original on disk.
        weights_after: weight bytes of the result on disk.
        scratch: disk space needed while the run goes on, the result included.
        peak_memory: resident memory of the process at its fullest moment.
        seconds: a rough estimate of the running time on this machine.
        tokens: calibration tokens; 0 if no step needs data.
        live: properties that hold for each layer before the first of its steps, and after each.
    """

    model: str
    family: str
    dtype: str
    blocks: int
    layers: tuple[LayerPlan, ...]
    skipped: tuple[tuple[str, str], ...]
    format: Format
    weights_before: int
    weights_after: int
    scratch: int
    peak_memory: int
    seconds: float
    tokens: int
    live: dict[str, list[frozenset[Property]]] = field(repr=False)
    shares: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        plain = {k: v for k, v in vars(self).items() if k not in ("layers", "skipped", "live")}
        skipped = [{"name": name, "reason": reason} for name, reason in self.skipped]
        return {**plain, "layers": [layer.to_dict() for layer in self.layers], "skipped": skipped}


def layer_steps(recipe: Recipe) -> tuple[LayerMethod, ...]:
    """The steps of a recipe that work layer by layer.

    Raises:
        RecipeConflict: a step of another kind, which this run cannot carry out.
    """
    for step in recipe.steps:
        if not isinstance(step, LayerMethod):
            raise RecipeConflict(
                f"{step.name} does not work layer by layer.",
                "modicum.compress carries out all kinds of steps.",
            )
    return tuple(step for step in recipe.steps if isinstance(step, LayerMethod))


def make_plan(
    source: Source, recipe: Recipe, wanted: Format = "auto", samples: tuple[int, int] | None = None
) -> Plan:
    """Plan a run.

    Args:
        source: the opened checkpoint.
        recipe: the steps.
        wanted: storage format; "auto" stores integers as compressed-tensors and masked weights as plain tensors.
        samples: (windows, tokens per window) of the calibration, if known better than by the recipe.

    Raises:
        RecipeConflict: steps that cannot follow each other on some layer.
        InvalidSetting: nothing is touched, or the format cannot store the result.
    """
    steps = with_tables(layer_steps(recipe), source.anatomy)
    live = live_of(steps, source.anatomy.layers(), recorded(source.made))
    if not live:
        raise InvalidSetting("The recipe touches no layer of this model.", "Widen `only`, or narrow `skip`.")
    layers = tuple(
        layer_plan(steps, layer, source.dtype) for layer in source.anatomy.layers() if layer.name in live
    )
    form = storage_format(source.model, layers, wanted, source.irregular is not None)
    before = source.shards.nbytes()
    after = before - sum(p.before - (p.before if form == "plain" else p.after) for p in layers)
    windows, length = samples or (recipe.calibration.samples, recipe.calibration.length)
    needs_data = any(step.statistics() or step.inputs() for step in steps)
    tokens = windows * length if needs_data else 0
    return Plan(
        model=str(source.directory),
        family=source.anatomy.family.name,
        dtype=str(source.dtype).removeprefix("torch."),
        blocks=len(source.anatomy.blocks),
        layers=layers,
        skipped=_skipped(source, live),
        format=form,
        weights_before=before,
        weights_after=after,
        scratch=2 * after + file_bytes(source, steps, tokens, hidden_width(source)),
        peak_memory=peak_memory(source, recipe, steps, tokens, length),
        seconds=_seconds(source, steps, tokens, recipe.calibration.propagate_error),
        tokens=tokens,
        live=live,
        shares=tuple(sentences(steps, source.anatomy)),
    )


def layer_plan(steps: Sequence[LayerMethod], layer: Layer, dtype: torch.dtype) -> LayerPlan:
    """What the steps that touch a layer (at least one) make of it, when it is stored in `dtype`."""
    touched_by = touching(steps, layer)
    weight = _meta(layer, dtype)
    form = [step.expected_form(weight) for step in touched_by][-1]  # all: each may refuse the shape
    names = tuple(step.name for step in touched_by)
    shape = (layer.out_features, layer.in_features)
    return LayerPlan(layer.name, layer.role, layer.block, shape, names, form, weight.nbytes, form.nbytes)


def _meta(layer: Layer, dtype: torch.dtype) -> Tensor:
    return torch.empty(layer.out_features, layer.in_features, dtype=dtype, device="meta")


def storage_format(
    model: nn.Module, layers: Sequence[LayerPlan], wanted: Format, irregular: bool = False
) -> Format:
    """The format that the result is stored in.

    Raises:
        InvalidSetting: compressed-tensors was asked for and cannot hold what the recipe makes.
    """
    if irregular and wanted == "compressed-tensors":
        raise InvalidSetting(
            "The blocks of this model have different sizes, which compressed-tensors cannot say.",
            "Use --format modicum, or modicum export --uniform first.",
        )
    foreign = not isinstance(model, PreTrainedModel)
    if foreign and wanted == "compressed-tensors":
        raise InvalidSetting(
            "compressed-tensors is for models that transformers opens; this one is modicum's own.",
            "Use --format modicum, or plain.",
        )
    schemes = integer_schemes({p.name: p.form for p in layers})
    portable = (
        not foreign
        and not irregular
        and bool(schemes)
        and len(schemes) == len(layers)
        and expressible(dict(model.named_modules()), schemes)
    )
    if wanted == "auto":
        return "compressed-tensors" if portable else ("modicum" if schemes else "plain")
    if wanted == "compressed-tensors" and not portable:
        raise InvalidSetting(
            "compressed-tensors holds integer weights of linear layers with whole groups only.",
            "Use --format modicum, or quantize every touched layer with a group size that divides its inputs.",
        )
    return wanted


def integer_schemes(forms: dict[str, WeightForm]) -> dict[str, IntegerScheme]:
    """The integer scheme of every packed form."""
    return {name: form.scheme for name, form in forms.items() if isinstance(form, PackedWeight)}


def _skipped(source: Source, touched: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    anatomy = source.anatomy
    inside = [(s.name, s.reason) for block in anatomy.blocks for s in block.skipped]
    unselected = [
        (layer.name, "not selected by the recipe") for layer in anatomy.layers() if layer.name not in touched
    ]
    return (*((s.name, s.reason) for s in anatomy.outside), *inside, *unselected)


def _seconds(source: Source, steps: Sequence[LayerMethod], tokens: int, propagate_error: bool) -> float:
    """Forward passes, Gram matrices and column sweeps, at the matrix speed measured now.

    Gradients take another forward pass, and backwards one more and twice as much; sharing by outliers takes one.
    """
    parameters = sum(layer.out_features * layer.in_features for layer in source.anatomy.layers())
    grams = [
        (layer.out_features, layer.in_features)
        for layer in source.anatomy.layers()
        for step in touching(steps, layer)
        if "gram" in step.statistics()
    ]
    passes = (2 if propagate_error else 1) if reads_inputs(steps) else 0
    passes += any(map(by_outliers, steps))
    passes += 4 if any("gradient" in step.statistics() for step in steps) else 0
    forward = 2 * passes * parameters * tokens / _flops_per_second(source.dtype)
    second_order = sum(tokens * i * i / 2 + 4 * o * i * i + i**3 for o, i in grams) / _flops_per_second(
        torch.float32
    )
    return forward + second_order + source.shards.nbytes() / 500e6


@cache
@widened_products()
def _flops_per_second(dtype: torch.dtype, size: int = 256) -> float:
    """As a run multiplies, measured once per process: even one product takes a while."""
    a = torch.ones(size, size, dtype=dtype)
    a @ a
    started = time.perf_counter()
    for _ in range(3):
        a @ a
    return 3 * 2 * size**3 / (time.perf_counter() - started)
