"""Put coded weights into a model: what stands in for its parameters, and the arrays where they are decoded.

The model is built without weights. Every coded parameter is taken out, and the module of its group gets the arrays of
the group as buffers under their names on disk, so that reading a checkpoint fills them like anything else. When they
are filled, `start` checks them and lets the forward passes decode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modicum.errors import CheckpointError
from modicum.formats.coded import AGAIN, DTYPES, CodedGroup, CodedShards, CodedWeight, Layout
from modicum.formats.irregular import submodule
from modicum.formats.shards import Stored
from modicum.weights.coded import CodedWeights, Group, Place


def install(model: Any, layout: Layout, stored: Mapping[str, Stored], prefix: str = "") -> list[Group]:
    """Replace all coded parameters of a model by the arrays of their groups, empty and on the meta device.

    Args:
        model: with all its parameters.
        layout: what is coded.
        stored: header entries of the arrays.
        prefix: path in `model` of the part that the names of the layout are relative to, with a dot behind it.

    Returns:
        The groups, in the order in which their modules lie in the model.

    Raises:
        CheckpointError: a module or a parameter is not there, or has another shape.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    claimed = {prefix + weight.name for group in layout.groups.values() for weight in group.weights}
    groups = []
    for name, group in layout.groups.items():
        holder = submodule(model, prefix + name)
        users = [(holder, tuple(_place(model, parameters, prefix, weight) for weight in group.weights))]
        users += _tied(model, parameters, prefix, group, claimed)
        for key in layout.keys(name):
            empty = torch.empty(stored[key].shape, dtype=stored[key].dtype, device="meta")
            holder.register_buffer(key.rpartition(".")[2], empty)
        groups.append(Group(prefix + name, holder, DTYPES[group.dtype], users))
    gone = {place.label for group in groups for _, places in group.users for place in places}
    for path in gone:
        owner, _, leaf = path.rpartition(".")
        del model.get_submodule(owner)._parameters[leaf]
    _leave_alone(groups)
    _untie(model, gone)
    order = {id(module): index for index, module in enumerate(model.modules())}
    return sorted(groups, key=lambda group: order[id(group.holder)])


def _place(model: nn.Module, parameters: Mapping[str, Tensor], prefix: str, weight: CodedWeight) -> Place:
    name = prefix + weight.name
    owner, _, leaf = name.rpartition(".")
    if name not in parameters or tuple(parameters[name].shape) != tuple(weight.shape):
        there = list(parameters[name].shape) if name in parameters else "nothing"
        raise CheckpointError(
            f"The coded weight {name} is {list(weight.shape)}, config.json has {there}.", AGAIN
        )
    return Place(model.get_submodule(owner), leaf, tuple(weight.shape), name)


def _tied(
    model: Any, parameters: Mapping[str, Tensor], prefix: str, group: CodedGroup, claimed: set[str]
) -> list[tuple[nn.Module, tuple[Place, ...]]]:
    """Modules elsewhere whose parameter is the one of this group (which has no other)."""
    if len(group.weights) > 1:
        return []
    (weight,) = group.weights
    wanted, shape = prefix + weight.name, tuple(weight.shape)
    ties = (
        getattr(model, "all_tied_weights_keys", None) or {}
    )  # transformers ties after it has read the weights
    found: list[tuple[nn.Module, tuple[Place, ...]]] = []
    for name, parameter in parameters.items():
        same = parameter is parameters[wanted] or ties.get(name) == wanted or ties.get(wanted) == name
        if same and name not in claimed:
            owner, _, leaf = name.rpartition(".")
            module = model.get_submodule(owner)
            found.append((module, (Place(module, leaf, shape, name),)))
    return found


def _leave_alone(groups: Sequence[Group]) -> None:
    """Keep transformers from initializing what it finds missing.

    Modules that compute buffers are still called to do so; what they find in the place of a weight is marked itself.
    """
    for group in groups:
        for user, places in group.users:
            for module in user.modules():
                module._is_hf_initialized = not module._non_persistent_buffers_set  # type: ignore[assignment]
            for place in places:
                place.clear(group.stored, torch.device("cpu"))


def _untie(model: Any, gone: set[str]) -> None:
    """Let transformers forget which parameters it ties: they are none any more."""
    ties = getattr(model, "all_tied_weights_keys", None) or {}
    for target, source in list(ties.items()):
        if target in gone or source in gone:
            del ties[target]


def fill(groups: list[Group], shards: CodedShards, device: torch.device, prefix: str = "") -> None:
    """Read the arrays of all groups."""
    for group in groups:
        for key, array in shards.arrays(group.name.removeprefix(prefix)).items():
            group.holder._buffers[key] = array.to(device)


def start(
    model: nn.Module, groups: Sequence[Group], dtype: torch.dtype | None, offload: bool = False
) -> CodedWeights:
    """Check all groups, and decode from now on. The model is for inference: no parameter asks for gradients.

    Args:
        model: of the groups, filled.
        groups: of `install`.
        dtype: what the model computes in; that of the first group by default.
        offload: keep the codes in the memory of the host.

    Raises:
        CheckpointError: a group is damaged.
    """
    model.requires_grad_(False)
    coded = CodedWeights(groups, dtype or (groups[0].stored if groups else torch.bfloat16))
    if offload:
        coded.offload()
    coded.check()
    model.coded_weights = coded  # type: ignore[assignment]
    return coded
