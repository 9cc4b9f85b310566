"""One view over any model: its blocks in execution order, the weight matrices of each block, its folds and
experts.

    anatomy = Anatomy.of(model)
    for block in anatomy.blocks:
        for layer in block.layers:
            layer.name, layer.role, layer.weight     # "model.layers.0.self_attn.q_proj", "q", [out, in]

Every parameter with two or more dimensions is accounted for exactly once: it is (in) a layer of a block, or
skipped by a block with a reason, or outside the blocks with a reason. What the family's table entry does
not explain is an error that names it, never a silent omission. Only names and shapes are looked at, so a
model on the meta device will do.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from modicum.errors import UnknownName, UnsupportedModel
from modicum.models.experts import ExpertsView, experts_of
from modicum.models.families import Family, family_of, refuse_unconverted
from modicum.models.folds import ResolvedFold, resolve
from modicum.models.layer import Layer
from modicum.models.skeleton import release
from modicum.models.storage import storage_of

__all__ = ["Anatomy", "Block", "ExpertsView", "Layer", "ResolvedFold", "Skipped"]


@dataclass(frozen=True)
class Skipped:
    """A weight matrix that stays as it is. `name` is its module path without ".weight"."""

    name: str
    reason: str


@dataclass(frozen=True)
class Block:
    """One of the repeated blocks of a model.

    Attributes:
        index: position in execution order.
        name: module path, such as "model.layers.0".
        module: the block itself.
        layers: its weight matrices, in execution order; the experts' come last.
        skipped: matrices that stay as they are.
        folds: places where a scale can migrate without changing the function.
        experts: its routed experts, if it has any.
        attention: its attention (or mixer) module, if the family names one.
        mlp: its feed-forward module, if the family names one.
    """

    index: int
    name: str
    module: nn.Module
    layers: tuple[Layer, ...]
    skipped: tuple[Skipped, ...]
    folds: tuple[ResolvedFold, ...]
    experts: ExpertsView | None
    attention: nn.Module | None
    mlp: nn.Module | None

    def release(self) -> None:
        """Take forms out and put all parameters on the meta device: nothing of the block stays in memory."""
        for layer in self.layers:
            layer.forget()
        release(self.module)


@dataclass(frozen=True)
class Anatomy:
    """A model, taken apart by its family's table entry.

    Attributes:
        model: the transformers model.
        family: the table entry.
        blocks: in execution order.
        outside: weight matrices outside the blocks (embeddings, heads) and why they are skipped.
    """

    model: nn.Module
    family: Family
    blocks: tuple[Block, ...]
    outside: tuple[Skipped, ...]

    @classmethod
    def of(cls, model: nn.Module, family: Family | None = None) -> Anatomy:
        """Take `model` apart; `family` defaults to the table entry of its config.

        Raises:
            UnsupportedModel: no entry, no blocks where it says, or a matrix of a block that it does not
                explain.
        """
        if family is None:
            refuse_unconverted(model)
            family = family_of(getattr(model, "config", model))
        found = list(_block_modules(model, family))
        blocks = tuple(_block(i, name, module, family, model) for i, (name, module) in enumerate(found))
        return cls(model, family, blocks, _outside(model, [name for name, _ in found]))

    @property
    def stacks(self) -> tuple[int, ...]:
        """How many blocks each list of blocks has, in execution order: one number for most models."""
        return tuple(Counter(block.name.rpartition(".")[0] for block in self.blocks).values())

    def layers(self) -> Iterator[Layer]:
        """Every layer of every block, in execution order."""
        return (layer for block in self.blocks for layer in block.layers)

    def layer(self, name: str) -> Layer:
        """The layer of that name.

        Raises:
            UnknownName: there is none; names the nearest.
        """
        by_name = {layer.name: layer for layer in self.layers()}
        if name not in by_name:
            raise UnknownName.among("layer", name, by_name)
        return by_name[name]

    def describe(self) -> dict[str, Any]:
        """Family, model class, and counts of blocks, layers and parameters (all, and those in layers)."""
        layers = list(self.layers())
        return {
            "family": self.family.name,
            "model": type(self.model).__name__,
            "blocks": len(self.blocks),
            "layers": len(layers),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "layer_parameters": sum(layer.out_features * layer.in_features for layer in layers),
        }


def module_name(model: nn.Module, wanted: nn.Module) -> str:
    """The path of `wanted` inside `model`; "" for the model itself."""
    return next(name for name, module in model.named_modules() if module is wanted)


def _block_modules(model: nn.Module, family: Family) -> Iterator[tuple[str, nn.Module]]:
    base: nn.Module = getattr(model, "base_model", model)
    prefix = module_name(model, base)
    lists = [found for path in family.blocks for found in _follow(base, prefix, path.split("."))]
    if not any(len(list(module.children())) for _, module in lists):
        path = ", ".join(family.blocks)
        raise UnsupportedModel(
            f"{type(model).__name__} has no blocks at {path!r}, where {family.name} has them."
        )
    for name, module in lists:
        for child_name, child in module.named_children():
            yield f"{name}.{child_name}", child


def _follow(module: nn.Module, name: str, path: list[str]) -> list[tuple[str, nn.Module]]:
    """Every module that `path` reaches from `module`; `*` stands for every child."""
    if not path:
        return [(name, module)]
    steps = dict(module.named_children())
    taken = steps if path[0] == "*" else {key: child for key, child in steps.items() if key == path[0]}
    return [
        found
        for key, child in taken.items()
        for found in _follow(child, f"{name}.{key}" if name else key, path[1:])
    ]


def _block(index: int, name: str, module: nn.Module, family: Family, model: nn.Module) -> Block:
    inside = dict(module.named_modules())
    dense = [_layer(index, name, path, role, inside) for path, role in family.roles.items() if path in inside]
    experts = experts_of(index, name, inside, family.experts)
    layers = (*dense, *(experts.layers if experts else ()))
    skipped = tuple(
        Skipped(f"{name}.{path}", family.skip[path])
        for path in _unexplained(module, name, layers)
        if path in family.skip
    )
    _refuse_unknown(module, name, layers, family)
    return Block(
        index,
        name,
        module,
        layers,
        skipped,
        resolve(family, name, module, layers, getattr(model, "config", None)),
        experts,
        inside.get(family.attention) if family.attention else None,
        inside.get(family.mlp) if family.mlp else None,
    )


def _layer(index: int, name: str, path: str, role: str, inside: dict[str, nn.Module]) -> Layer:
    storage = storage_of(inside[path])
    if storage is None:
        kind = type(inside[path]).__name__
        raise UnsupportedModel(f"{name}.{path} is a {kind}; layers are nn.Linear, Conv1D or nn.Conv2d.")
    parent, _, attribute = path.rpartition(".")
    return Layer(f"{name}.{path}", role, index, storage, inside[parent], attribute)


def _unexplained(module: nn.Module, name: str, layers: tuple[Layer, ...]) -> list[str]:
    """Paths (without ".weight") of matrices of the block that are in no layer."""
    explained = {parameter for layer in layers for parameter in layer.parameter_names}
    matrices = (key for key, parameter in module.named_parameters() if parameter.dim() >= 2)
    return [key.removesuffix(".weight") for key in matrices if f"{name}.{key}" not in explained]


def _refuse_unknown(module: nn.Module, name: str, layers: tuple[Layer, ...], family: Family) -> None:
    unknown = [path for path in _unexplained(module, name, layers) if path not in family.skip]
    if unknown:
        raise UnsupportedModel(
            f"The description of {family.name} does not explain {name}.{unknown[0]}"
            + (f" and {len(unknown) - 1} more." if len(unknown) > 1 else "."),
            f"Add {unknown[0]!r} to the roles of its table entry, or to skip with a reason.",
        )


def _outside(model: nn.Module, blocks: list[str]) -> tuple[Skipped, ...]:
    inside = tuple(f"{name}." for name in blocks)
    return tuple(
        Skipped(key.removesuffix(".weight"), _reason(model, key, parameter))
        for key, parameter in model.named_parameters()
        if parameter.dim() >= 2 and not key.startswith(inside)
    )


def _reason(model: nn.Module, key: str, parameter: Tensor) -> str:
    owner = model.get_submodule(key.rpartition(".")[0])
    if isinstance(owner, nn.Embedding):
        return "an embedding table: its rows are looked up, not multiplied"
    if isinstance(owner, (nn.Conv1d, nn.Conv2d)):
        return "reads the raw input, outside the repeated blocks"
    if re.search(r"head|classifier|score|cls|outputs|pooler", key):
        return "a head: it decides the output directly and is outside the repeated blocks"
    return "outside the repeated blocks"
