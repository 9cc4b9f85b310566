"""What else knows how many heads and neurons there are: counts in modules, and the config.

A module that counts its heads counts fewer after a cut, in proportion (query heads, key-value heads, the width of a
third of a fused matrix). A config has one number for all blocks; it takes the new number if all blocks agree on it,
if its class accepts that (Llama wants a divisor of the hidden size), and if the model that it then describes has the
shapes of the one at hand.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from modicum.errors import UnsupportedModel
from modicum.models.skeleton import skeleton

if TYPE_CHECKING:
    from modicum.models.surgery import Cuttable

_COUNTS = {
    "heads": ("num_heads", "num_attention_heads", "num_key_value_heads", "split_size", "all_head_size"),
    "neurons": ("intermediate_size",),
}
_CONFIG = {
    "heads": ("num_attention_heads", "num_key_value_heads"),
    "neurons": ("intermediate_size", "ffn_dim", "n_inner", "shared_expert_intermediate_size"),
}

Sizes = Sequence[tuple["Cuttable", int]]
"""Everything that can be cut in a model, with its new count."""


def shrink_counts(unit: Cuttable, count: int) -> None:
    """Let the modules that count the groups of `unit` count `count` of them."""
    for module in unit.owners:
        for name in _COUNTS[unit.kind]:
            value = vars(module).get(name)
            if type(value) is int:
                setattr(module, name, value * count // unit.count)


def check_sizes(model: nn.Module, sizes: Sizes) -> None:
    """Refuse what a model that reads its number of heads from the config (Phi-3) cannot have.

    Raises:
        UnsupportedModel: the blocks differ in it, or the config class does not accept it.
    """
    heads = [(unit, count) for unit, count in sizes if unit.kind == "heads"]
    reading = [unit for unit, _ in heads if _reads_config(unit)]
    if not reading or all(count == unit.count for unit, count in heads):
        return
    if _described(model, heads) is None:
        raise UnsupportedModel(
            f"{type(model).__name__} reads its number of heads from the config, which cannot say what is left of "
            f"{reading[0].name}.",
            "Cut neurons alone, or the same number of heads everywhere.",
        )


def _reads_config(unit: Cuttable) -> bool:
    """Fused queries, keys and values of different widths are told apart by the config's count."""
    return len({part.layer for part in unit.parts}) == 2 and not hasattr(unit.owners[0], "split_size")


def adopt_sizes(model: Any, sizes: Sizes) -> None:
    """Write the new sizes into the config of a model that was cut, if it can say them."""
    config = _described(model, sizes)
    if config is None or _shapes(skeleton(config)) != _shapes(model):
        heads = [(unit, count) for unit, count in sizes if unit.kind == "heads" and _reads_config(unit)]
        config = _described(model, heads)
        if config is None or not heads:
            return
    for name, value in vars(config).items():
        setattr(model.config, name, value)


def _shapes(model: nn.Module) -> dict[str, Any]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def _described(model: Any, sizes: Sizes) -> Any:
    """A copy of the config with the sizes on which all blocks agree; None if they do not, or it refuses them."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    try:
        for kind, names in _CONFIG.items():
            units = [(unit, count) for unit, count in sizes if unit.kind == kind]
            if len({(unit.count, count) for unit, count in units}) > 1:
                return None
            if units:
                _set(config, names, *units[0])
        type(config).from_dict(config.to_dict())  # a config class checks itself when it is made
        skeleton(config)
    except Exception:  # each config class refuses in its own way
        return None
    return config


def _set(config: Any, names: Sequence[str], unit: Cuttable, count: int) -> None:
    if count == unit.count:
        return
    if unit.kind == "heads":
        config.head_dim = unit.parts[-2].members.shape[1]  # of a value head
    for name in names:
        value = getattr(config, name, 0)
        if value is None or value == unit.count:
            setattr(config, name, count)
        elif unit.kind == "heads" and value:
            setattr(config, name, value * count // unit.count)
