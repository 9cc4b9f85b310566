"""Remove blocks from a model whose blocks form one residual stack.

Every block reads and writes hidden states of one width, so any subset of them, in order, is a model. What else knows
of the depth is renumbered: the index that a layer finds its cache entry by, the number of blocks in the config, and
the lists in it that hold one entry per block. `from_pretrained` then opens the smaller model as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel
from torch import nn

from modicum.errors import InvalidSetting, UnsupportedModel
from modicum.models.anatomy import Anatomy
from modicum.models.next_scale import NextScaleModel

_OWN_INDEX = ("layer_idx", "layer")  # attributes by which a module knows the position of its block
_PER_BLOCK = ("layer_types", "mlp_layer_types", "no_rope_layers")  # config lists with one entry per block
_OF_BLOCKS = ("mlp_only_layers",)  # config lists of block indices


def keep_blocks(anatomy: Anatomy, kept: Sequence[int]) -> Anatomy:
    """The same model with only the blocks `kept`, changed in place.

    Args:
        anatomy: of the model.
        kept: ascending indices of the blocks that stay.

    Raises:
        InvalidSetting: an index that is out of range, repeated or out of order, or none.
        UnsupportedModel: the blocks are not one list.
    """
    check_kept(kept, len(anatomy.blocks))
    stack = _stack(anatomy)
    blocks = list(stack)
    del stack[:]
    for new, old in enumerate(kept):
        _renumber(blocks[old], old, new)
        stack.append(blocks[old])
    _shorten_config(anatomy, kept, len(blocks))
    return Anatomy.of(anatomy.model, anatomy.family)


def check_kept(kept: Sequence[int], depth: int) -> None:
    """Refuse what is no choice of blocks.

    Raises:
        InvalidSetting: an index that is out of range, repeated or out of order, or none.
    """
    if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= depth:
        raise InvalidSetting(
            f"{list(kept)} is no choice of blocks of a model that has {depth}.",
            f"Give ascending indices from 0 to {depth - 1}.",
        )


def _stack(anatomy: Anatomy) -> nn.ModuleList:
    parents = {block.name.rpartition(".")[0] for block in anatomy.blocks}
    stack = anatomy.model.get_submodule(parents.pop())
    if parents or not isinstance(stack, nn.ModuleList):
        raise UnsupportedModel(
            f"The blocks of {type(anatomy.model).__name__} are not one list; none of them can be left out.",
            "Depth can be pruned where all blocks have one width.",
        )
    return stack


def _renumber(block: nn.Module, old: int, new: int) -> None:
    for module in block.modules():
        for attribute in _OWN_INDEX:
            value = vars(module).get(attribute)
            if isinstance(value, int) and value == old:
                setattr(module, attribute, new)


def _shorten_config(anatomy: Anatomy, kept: Sequence[int], depth: int) -> None:
    model: Any = anatomy.model
    config, count = model.config, anatomy.family.depth
    if isinstance(config, BaseModel):
        _share(model, config, config.model_copy(update={count: len(kept)}))
    else:
        setattr(config, count, len(kept))
        for name in _PER_BLOCK:
            listed = getattr(config, name, None)
            if isinstance(listed, list) and len(listed) == depth:
                setattr(config, name, [listed[index] for index in kept])
        for name in _OF_BLOCKS:
            if getattr(config, name, None):
                listed = [new for new, old in enumerate(kept) if old in getattr(config, name)]
                setattr(config, name, listed)
    if isinstance(model, NextScaleModel):
        model.shape = replace(model.shape, layers=len(kept))


def _share(model: nn.Module, old: BaseModel, new: BaseModel) -> None:
    """Give every module that holds the frozen config `old` the new one."""
    for module in model.modules():
        if vars(module).get("config") is old:
            module.config = new  # type: ignore[assignment]
