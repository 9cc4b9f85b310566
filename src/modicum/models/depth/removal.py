"""Remove blocks from a model whose blocks form one residual stack, or several (the encoder and decoder of MAR).

Every block of a stack reads and writes hidden states of one width, so any subset of them, in order, is a model. What
else knows of the depth is renumbered: the index that a layer finds its cache entry by, the number of blocks in the
config, and the lists in it that hold one entry per block. `from_pretrained` then opens the smaller model as any other.
Every stack keeps a block at least: without one it would be no stack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, cast

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
        kept: ascending indices of the blocks that stay, counted through all stacks.

    Raises:
        InvalidSetting: an index that is out of range, repeated or out of order, none, or none of some stack.
        UnsupportedModel: the config does not count the blocks of every list.
    """
    check_kept(kept, len(anatomy.blocks))
    stacks, counts = _stacks(anatomy), _counts(anatomy)
    remaining = split(kept, anatomy.stacks)
    for name, left in zip(stacks, remaining, strict=True):
        if not left:
            raise InvalidSetting(
                f"{list(kept)} leaves no block of {name}.", "Keep at least one block of every stack."
            )
    for stack, left in zip(stacks.values(), remaining, strict=True):
        blocks = list(stack)
        del stack[:]
        for new, old in enumerate(left):
            _renumber(blocks[old], old, new)
            stack.append(blocks[old])
    depths = dict(zip(counts, map(len, remaining), strict=True))
    _shorten_config(anatomy, depths, kept)
    return Anatomy.of(anatomy.model, anatomy.family)


def split(kept: Sequence[int], depths: Sequence[int]) -> list[list[int]]:
    """Indices counted through all stacks, as indices within each stack.

    Args:
        kept: ascending.
        depths: blocks of each stack.
    """
    starts = accumulate(depths, initial=0)
    return [
        [index - start for index in kept if start <= index < start + depth]
        for start, depth in zip(starts, depths, strict=False)
    ]


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


def _stacks(anatomy: Anatomy) -> dict[str, nn.ModuleList]:
    """The lists of blocks by name, in execution order."""
    names = dict.fromkeys(block.name.rpartition(".")[0] for block in anatomy.blocks)
    stacks = {name: anatomy.model.get_submodule(name) for name in names}
    if len(_counts(anatomy)) != len(stacks) or not all(isinstance(s, nn.ModuleList) for s in stacks.values()):
        raise UnsupportedModel(
            f"The blocks of {type(anatomy.model).__name__} are not one list; none of them can be left out.",
            "Depth can be pruned where all blocks have one width.",
        )
    return cast("dict[str, nn.ModuleList]", stacks)


def _counts(anatomy: Anatomy) -> tuple[str, ...]:
    """What the config calls the number of blocks of each stack."""
    counts = anatomy.family.depth
    return (counts,) if isinstance(counts, str) else counts


def _renumber(block: nn.Module, old: int, new: int) -> None:
    for module in block.modules():
        for attribute in _OWN_INDEX:
            value = vars(module).get(attribute)
            if isinstance(value, int) and value == old:
                setattr(module, attribute, new)


def _shorten_config(anatomy: Anatomy, depths: Mapping[str, int], kept: Sequence[int]) -> None:
    """Write the new numbers of blocks, and thin out the lists with an entry per block."""
    model: Any = anatomy.model
    config, before = model.config, len(anatomy.blocks)
    if isinstance(config, BaseModel):
        _share(model, config, config.model_copy(update=dict(depths)))
    else:
        for count, depth in depths.items():
            setattr(config, count, depth)
        for name in _PER_BLOCK:
            listed = getattr(config, name, None)
            if isinstance(listed, list) and len(listed) == before:
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
