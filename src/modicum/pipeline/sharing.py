"""How layers share a sparsity, settled once, before any of them is changed.

A step whose sparsity is shared out (`allocation` of `modicum.prune.sparse`) is exchanged for one that knows the
sparsity of each layer. A table is known from the start. OWL asks what stands out in the dense model, which takes a pass
through it (`modicum.pipeline.outliers`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modicum.allocate.sparsity import Owl, Table, brief
from modicum.method import LayerMethod
from modicum.models import Anatomy, Block, Layer
from modicum.prune.sparse import Sparse

Steps = Sequence[LayerMethod]
Outliers = Mapping[int, Sequence[float | None]]
"""By the index of a block, for each step, the share of outliers; None for steps that do not ask or leave it alone."""


def by_outliers(step: LayerMethod) -> bool:
    """Whether a step shares its sparsity out by outliers."""
    return isinstance(step, Sparse) and isinstance(step.allocation, Owl)


def touched(step: LayerMethod, block: Block) -> list[Layer]:
    """The layers of a block that a step applies to."""
    return [layer for layer in block.layers if step.touches(layer.name, layer.role)]


def with_tables(steps: Steps, anatomy: Anatomy) -> tuple[LayerMethod, ...]:
    """The steps, those that were given a table with the sparsities of the layers of this model.

    Raises:
        UnknownName: a table names what the model does not have.
    """
    blocks = {block.name: [layer.name for layer in block.layers] for block in anatomy.blocks}
    return tuple(
        step.sharing(step.allocation.shares(blocks))
        if isinstance(step, Sparse) and isinstance(step.allocation, Table)
        else step
        for step in steps
    )


def with_outliers(steps: Steps, anatomy: Anatomy, outliers: Outliers) -> tuple[LayerMethod, ...]:
    """The steps, those that share by outliers with the sparsities that follow from the dense model."""
    return tuple(
        step.sharing(_by_outliers(step, step.allocation, anatomy, {i: d[place] for i, d in outliers.items()}))
        if isinstance(step, Sparse) and isinstance(step.allocation, Owl)
        else step
        for place, step in enumerate(steps)
    )


def _by_outliers(
    step: Sparse, owl: Owl, anatomy: Anatomy, outliers: Mapping[int, float | None]
) -> dict[str, float]:
    known = [
        (touched(step, block), d) for block in anatomy.blocks if (d := outliers[block.index]) is not None
    ]
    if not known:
        return {}
    sizes = [sum(layer.out_features * layer.in_features for layer in layers) for layers, _ in known]
    shares = owl.sparsities([d for _, d in known], sizes, step.sparsity)
    return {layer.name: share for (layers, _), share in zip(known, shares, strict=True) for layer in layers}


def tables(steps: Steps, anatomy: Anatomy) -> Iterator[tuple[Sparse, dict[str, float]]]:
    """For each step that shares its sparsity out, once that is settled, the table that says so in few words."""
    for step in steps:
        if isinstance(step, Sparse) and step.shared:
            blocks = {block.name: [layer.name for layer in touched(step, block)] for block in anatomy.blocks}
            names = [name for layers in blocks.values() for name in layers]
            yield step, brief({name: step.of_layer(name).sparsity for name in names}, blocks)


def notes(steps: Steps, anatomy: Anatomy) -> dict[str, dict[str, Any]]:
    """What modicum.json says of them: a table for each, by the name of its method."""
    found: dict[str, dict[str, Any]] = {}
    for step, table in tables(steps, anatomy):
        again = sum(name.split(" ")[0] == step.name for name in found)
        found[f"{step.name} ({again + 1})" if again else step.name] = {"sparsities": table}
    return found


def sentences(steps: Steps, anatomy: Anatomy) -> list[str]:
    """What a plan says of them: the range where it is known, how it will be found where it is not."""
    said = [
        f"{step.name}: {min(table.values()):.1%} to {max(table.values()):.1%} by layer"
        for step, table in tables(steps, anatomy)
        if table
    ]
    for step in steps:
        if isinstance(step, Sparse) and isinstance(step.allocation, Owl):
            reach = 2 * step.allocation.strength
            said.append(
                f"{step.name}: {step.sparsity:.1%} on the whole, blocks up to {reach:.0%} apart, as outliers of the "
                "dense model say; sizes are those of equal sparsity"
            )
    return said
