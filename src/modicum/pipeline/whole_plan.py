"""What a run that begins with steps over the whole model will do, said before it starts; and one over DiT, SiT or MAR.

A step that removes blocks does not say in advance which go, but it says how many. Where the blocks of a stack are
alike, sizes follow from that, and those of the layer steps behind it too: blocks that stay are numbered anew, so that
they are named as the first ones were. Widths are found by running, and time and memory of a training depend on the
data: what is not known stands in the plan as a sentence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any

from modicum.errors import InvalidSetting
from modicum.method import LayerMethod, ModelMethod
from modicum.pipeline.classes import check_format
from modicum.pipeline.composition import live_properties, split_steps
from modicum.pipeline.outline import Outline
from modicum.pipeline.plan import Format, LayerPlan, integer_schemes, layer_plan, storage_format
from modicum.pipeline.recipe import Recipe
from modicum.pipeline.sharing import by_outliers, sentences, with_tables
from modicum.pipeline.sweep import touching


@dataclass(frozen=True)
class StepPlan:
    """What one step over the whole model does.

    Attributes:
        name: of the method.
        samples: that it reads, repetitions counted.
        blocks: how many each stack has afterwards; None if that is not known.
    """

    name: str
    samples: int
    blocks: tuple[int, ...] | None


@dataclass(frozen=True)
class WholePlan:
    """What a run over a whole model will do and need. All sizes in bytes; None is what only running it tells.

    Attributes:
        blocks: of the original.
        steps: over the whole model.
        layers: that are touched by the layer steps, of the blocks that stay.
        layer_steps: names of the layer steps.
        format: how the result will be stored.
        weights_before: weight bytes of the original on disk.
        weights_after: weight bytes of the result on disk.
        loaded: bytes of the weights that are in memory at once: float32, and the teacher's.
        tokens: that calibrate layer steps; 0 if none needs data, or for models that draw classes.
        samples: that calibrate layer steps of models that draw classes.
        unknown: what is not known, in sentences.
        order: names of all steps, if layer steps stand before one over the whole model.
    """

    model: str
    family: str
    dtype: str
    blocks: int
    steps: tuple[StepPlan, ...]
    layers: tuple[LayerPlan, ...]
    layer_steps: tuple[str, ...]
    format: Format | None
    weights_before: int
    weights_after: int | None
    loaded: int
    tokens: int
    samples: int
    unknown: tuple[str, ...] = field(default=())
    order: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        layers, steps = [layer.to_dict() for layer in self.layers], [vars(step) for step in self.steps]
        return {**vars(self), "layers": layers, "steps": steps}


def make_whole_plan(
    outline: Outline, recipe: Recipe, model: str, wanted: Format = "auto", length: int | None = None
) -> WholePlan:
    """Plan a run over a whole model.

    Args:
        outline: of the model.
        recipe: steps over the whole model and layer steps; not both must be there.
        model: its name.
        wanted: storage format of the layer steps.
        length: tokens of each calibration window; None if layers are calibrated on samples.

    Raises:
        RecipeConflict: steps that cannot follow each other.
        InvalidSetting: blocks that are not there are to stay, nothing is touched, or the format cannot store it.
    """
    whole, layers, *_, stages = split_steps(recipe.steps)
    order = [step.name for stage in stages for step in stage]
    layers = with_tables(layers, outline.anatomy)
    live_properties(recipe.steps)
    if layers and length is None:
        check_format(wanted)
    steps = tuple(_step_plans(whole, outline.anatomy.stacks))
    left, unknown = _left(outline, steps)
    planned = () if left is None else tuple(_layer_plans(outline, layers, left))
    form = None if left is None else _format(outline, layers, planned, wanted, length)
    after = None if left is None else _nbytes(outline, left)
    if after is not None and form != "plain":
        after -= sum(plan.before - plan.after for plan in planned)
    needed = recipe.calibration.samples if any(s.statistics() or s.inputs() for s in layers) else 0
    unknown = (*unknown, *sentences(list(filter(by_outliers, layers)), outline.anatomy))
    if any(step.samples for step in steps):
        unknown = (*unknown, "How long it takes, and what activations need of memory, is known when it runs.")
    return WholePlan(
        model=model,
        family=outline.anatomy.family.name,
        dtype=str(outline.dtype).removeprefix("torch."),
        blocks=len(outline.blocks),
        steps=steps,
        layers=planned,
        layer_steps=tuple(step.name for step in layers),
        format=form,
        weights_before=outline.before,
        weights_after=after,
        loaded=4 * outline.parameters * (1 + any(step.asks_teacher for step in whole)),
        tokens=needed * (length or 0),
        samples=0 if length else needed,
        unknown=unknown,
        order=() if order == [step.name for step in (*whole, *layers)] else tuple(order),
    )


def _step_plans(steps: Sequence[ModelMethod], stacks: Sequence[int]) -> Iterator[StepPlan]:
    left: tuple[int, ...] | None = tuple(stacks)
    for step in steps:
        left = None if left is None else step.blocks_kept(left)
        yield StepPlan(step.name, step.samples_read(), left)


def _left(outline: Outline, steps: Sequence[StepPlan]) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """Blocks of each stack in the end if sizes follow from them; and why not, if not."""
    stacks = outline.anatomy.stacks
    left = steps[-1].blocks if steps else stacks
    if left is None:
        first = next(step.name for step in steps if step.blocks is None)
        return None, (f"What {first} leaves of the blocks, and so every size, is known when it has run.",)
    if left != stacks and not outline.alike():
        return None, ("The blocks differ in size, so the size depends on which of them go.",)
    return left, ()


def _remaining(outline: Outline, left: Sequence[int]) -> Iterator[int]:
    """Indices of as many blocks of each stack."""
    starts = accumulate(outline.anatomy.stacks, initial=0)
    return chain.from_iterable(
        range(start, start + count) for start, count in zip(starts, left, strict=False)
    )


def _nbytes(outline: Outline, left: Sequence[int]) -> int:
    return outline.outside + sum(outline.blocks[index] for index in _remaining(outline, left))


def _layer_plans(outline: Outline, steps: Sequence[LayerMethod], left: Sequence[int]) -> Iterator[LayerPlan]:
    for index in _remaining(outline, left):
        for layer in outline.anatomy.blocks[index].layers:
            touched_by = touching(steps, layer)
            live_properties(touched_by)
            if touched_by:
                yield layer_plan(steps, layer, outline.dtype)


def _format(
    outline: Outline,
    steps: Sequence[LayerMethod],
    planned: Sequence[LayerPlan],
    wanted: Format,
    length: int | None,
) -> Format:
    if not steps:
        return "plain"
    if not planned:
        raise InvalidSetting("The recipe touches no layer of this model.", "Widen `only`, or narrow `skip`.")
    if length is not None:
        return storage_format(outline.model, planned, wanted, outline.irregular)
    packs = bool(integer_schemes({plan.name: plan.form for plan in planned}))
    return "modicum" if wanted == "modicum" or (wanted == "auto" and packs) else "plain"
