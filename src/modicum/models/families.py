"""One table entry per architecture family: what modicum knows of a model that the model cannot tell itself.

A transformers model is a tree of modules. Which of them are the repeated blocks, which matrix is the query
projection, which norm feeds which projection: this is written down here once, as data, and nowhere else. A
new architecture is a new entry handed to `register`; no class has to be written.

All names are dotted module paths. `blocks` is relative to the base model (`model.base_model`), everything
else is relative to one block. A role is what a matrix does, in one short vocabulary for all families:

    q k v qkv kv o         attention projections (fused: qkv, kv)
    gate up gate_up down   gated feed-forward (fused: gate_up), also of experts
    fc1 fc2                plain feed-forward
    in x out               state-space mixer
    conv1 conv2 conv3 shortcut   residual convolutions
    ada                    shifts, scales and gates out of a condition
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modicum.errors import UnsupportedModel


@dataclass(frozen=True)
class Fold:
    """A place where a positive scale per channel can move from one matrix to the next without changing the
    function.

    Dividing the outputs of `source` by s and multiplying the matching input columns of every target by s
    cancels.

    Args:
        source: the norm or linear layer whose outputs are divided.
        targets: every layer that reads these outputs; expert slices are written "mlp.experts.gate_proj".
        parent: smallest module whose output all targets act through; a search for s measures its error there.
        when: config attributes and the values they must have for the fold to be valid.
    """

    source: str
    targets: tuple[str, ...]
    parent: str
    when: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Experts:
    """Where a mixture-of-experts block keeps its experts: two fused tensors, one slice per expert.

    `gate_up_proj` is [experts, 2 * f, d] (rows 0..f-1 gate, f..2f-1 up), `down_proj` is [experts, d, f].

    Args:
        module: the module that holds the two fused parameters.
        router: the module that scores experts.
        disk: per-expert tensor names in checkpoints for gate, up and down, relative to the block.
    """

    module: str = "mlp.experts"
    router: str = "mlp.gate"
    disk: tuple[str, str, str] = (
        "mlp.experts.{expert}.gate_proj.weight",
        "mlp.experts.{expert}.up_proj.weight",
        "mlp.experts.{expert}.down_proj.weight",
    )


@dataclass(frozen=True)
class Family:
    """The description of one architecture family.

    Args:
        name: short name shown to users.
        model_types: values of `config.model_type` that this entry describes.
        blocks: paths of the block lists below the base model, in execution order; `*` stands for every child.
        roles: path of each weight matrix of a block -> its role, in execution order.
        attention: path of the attention (or mixer) module of a block, if there is one.
        mlp: path of the feed-forward module of a block, if it is one module.
        folds: function-preserving scale migrations.
        norm_offset: whether norms multiply by (1 + weight) instead of weight.
        experts: where routed experts live, for mixtures of experts.
        skip: path of a parameter or module of a block that must stay as it is -> why.
        renames: (regular expression on the model's name, replacement) pairs that give older names on disk.
        tuple_output: length of the tuple a block returns, hidden states first; 0 if it returns only them.
        depth: what the config calls the number of blocks; one name per list where every list has its own.
    """

    name: str
    model_types: tuple[str, ...]
    blocks: tuple[str, ...]
    roles: Mapping[str, str]
    attention: str | None = None
    mlp: str | None = None
    folds: tuple[Fold, ...] = ()
    norm_offset: bool = False
    experts: Experts | None = None
    skip: Mapping[str, str] = field(default_factory=dict)
    renames: tuple[tuple[str, str], ...] = ()
    tuple_output: int = 0
    depth: str | tuple[str, ...] = "num_hidden_layers"


_FAMILIES: dict[str, Family] = {}

CONVERTED = {
    "DiTTransformer2DModel": (
        "The DiTTransformer2DModel of diffusers keeps a copy of its embedders in every block, and its head reads the "
        "first one.",
        "Take modicum.models.dit.from_diffusers(model) and give it back with modicum.models.dit.save_diffusers, or "
        "open its directory with modicum.load.",
    )
}
"""Classes of other libraries whose models have to be converted first: what is the matter, and how it is done."""

_RECIPE = """Describe it with one table entry:
  modicum.models.register(Family(name="mine", model_types=("{model_type}",), blocks=("layers",),
      roles={{"self_attn.q_proj": "q", "mlp.up_proj": "up"}},   # path inside a block -> role, all matrices
      attention="self_attn", mlp="mlp"))"""


def register(family: Family) -> Family:
    """Add `family` to the table, for each of its model types; a later entry replaces an earlier one."""
    for model_type in family.model_types:
        _FAMILIES[model_type] = family
    return family


def supported() -> tuple[str, ...]:
    """The model types that the table describes, sorted."""
    return tuple(sorted(_FAMILIES))


def refuse_unconverted(model: Any) -> None:
    """Refuse a model of a class that has to be converted first.

    Raises:
        UnsupportedModel: says how.
    """
    if found := CONVERTED.get(type(model).__name__):
        raise UnsupportedModel(*found)


def family_of(config: Any) -> Family:
    """The table entry for a transformers config.

    Raises:
        UnsupportedModel: there is none; the message lists those that exist and shows how to add one.
    """
    model_type = str(getattr(config, "model_type", type(config).__name__))
    if model_type in _FAMILIES:
        return _FAMILIES[model_type]
    raise UnsupportedModel(
        f"The architecture {model_type!r} is not described. Supported: {', '.join(supported())}.",
        _RECIPE.format(model_type=model_type),
    )
