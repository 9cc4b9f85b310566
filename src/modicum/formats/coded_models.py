"""Put coded weights into a model: what stands in for its parameters, and the arrays where they are decoded.

The model is built without weights. Every coded parameter is taken out, and the module of its group gets the arrays of
the group as buffers under their names on disk, so that reading a checkpoint fills them like anything else. When they
are filled, `start` checks them and lets the forward passes decode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from modicum.errors import CheckpointError, UnsupportedModel
from modicum.formats.coded import CodedShards
from modicum.formats.coded_layout import AGAIN, DTYPES, CodedGroup, CodedWeight, Layout
from modicum.formats.irregular import submodule
from modicum.formats.shards import Shards, Stored
from modicum.models.state_files import Prepare
from modicum.weights.coded import HOSTED, CodedWeights, Group, Place

Built = TypeVar("Built", bound=nn.Module)


def install(model: Any, layout: Layout, stored: Mapping[str, Stored]) -> list[Group]:
    """Replace all coded parameters of a model by the arrays of their groups, empty and on the meta device.

    Args:
        model: with all its parameters.
        layout: what is coded.
        stored: header entries of the arrays.

    Returns:
        The groups, in the order in which their modules lie in the model.

    Raises:
        CheckpointError: a module or a parameter is not there, or has another shape.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    claimed = {weight.name for group in layout.groups.values() for weight in group.weights}
    groups = []
    for name, group in layout.groups.items():
        holder = submodule(model, name)
        users = [(holder, tuple(_place(model, parameters, weight) for weight in group.weights))]
        users += _tied(model, parameters, group, claimed)
        for key in layout.keys(name):
            empty = torch.empty(stored[key].shape, dtype=stored[key].dtype, device="meta")
            holder.register_buffer(key.rpartition(".")[2], empty)
        groups.append(Group(name, holder, DTYPES[group.dtype], _computed(parameters, users[0][1]), users))
    gone = {place.label for group in groups for _, places in group.users for place in places}
    for path in gone:
        owner, _, leaf = path.rpartition(".")
        del model.get_submodule(owner)._parameters[leaf]
    _leave_alone(groups)
    _untie(model, gone)
    order = {id(module): index for index, module in enumerate(model.modules())}
    return sorted(groups, key=lambda group: order[id(group.holder)])


def _place(model: nn.Module, parameters: Mapping[str, Tensor], weight: CodedWeight) -> Place:
    name = weight.name
    owner, _, leaf = name.rpartition(".")
    if name not in parameters or tuple(parameters[name].shape) != tuple(weight.shape):
        there = list(parameters[name].shape) if name in parameters else "nothing"
        raise CheckpointError(
            f"The coded weight {name} is {list(weight.shape)}, config.json has {there}.", AGAIN
        )
    return Place(model.get_submodule(owner), leaf, tuple(weight.shape), name)


def _computed(parameters: Mapping[str, Tensor], places: Sequence[Place]) -> torch.dtype:
    """What the model computes in with the weights of a group."""
    first, *others = (parameters[place.label].dtype for place in places)
    if any(other != first for other in others):
        raise UnsupportedModel(
            f"{places[0].label} and others that are coded with it are kept in several dtypes.",
            "Write the original with modicum export --plain, and open that.",
        )
    return first


def _tied(
    model: Any, parameters: Mapping[str, Tensor], group: CodedGroup, claimed: set[str]
) -> list[tuple[nn.Module, tuple[Place, ...]]]:
    """Modules elsewhere whose parameter is the one of this group (which has no other)."""
    if len(group.weights) > 1:
        return []
    (weight,) = group.weights
    wanted, shape = weight.name, tuple(weight.shape)
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
        for user, _ in group.users:
            for module in user.modules():
                module._is_hf_initialized = not module._non_persistent_buffers_set  # type: ignore[assignment]
        group.withdraw(torch.device("cpu"))


def _untie(model: Any, gone: set[str]) -> None:
    """Let transformers forget which parameters it ties: they are none any more."""
    ties = getattr(model, "all_tied_weights_keys", None) or {}
    for target, source in list(ties.items()):
        if target in gone or source in gone:
            del ties[target]


def fill(groups: list[Group], shards: CodedShards, device: torch.device, offload: bool = False) -> None:
    """Read the arrays of all groups.

    Args:
        groups: of `install`.
        shards: the checkpoint.
        device: where they are decoded.
        offload: let nearly all bytes stay in the memory of the host, locked there for a GPU.
    """
    for group in groups:
        for key, array in shards.arrays(group.name).items():
            if offload and key in HOSTED:
                del group.holder._buffers[key]
                group.hosted[key] = array.pin_memory() if device.type == "cuda" else array
            else:
                group.holder._buffers[key] = array.to(device)


def runs(shards: Shards) -> TypeGuard[CodedShards]:
    """Whether a model can run from these tensors as they are coded."""
    return isinstance(shards, CodedShards) and shards.layout.method == "lossless.dfloat11"


def opened(shards: CodedShards, build: Callable[[dict[str, Tensor], Prepare], Built]) -> Built:
    """A model that modicum defines, running from its codes.

    Args:
        shards: the checkpoint, one that `runs`.
        build: makes the model of all tensors that are stored; its second argument is to be called with the part that
            they belong to while that has no weights.

    Raises:
        CheckpointError: a group is damaged, or the model has other weights.
    """
    groups: list[Group] = []
    coded = {f"{n}.{key}": array for n in shards.layout.groups for key, array in shards.arrays(n).items()}
    rest = {name: shards.stored.read(name) for name in shards.stored.names() if name not in coded}
    model = build(
        coded | rest, lambda part: groups.extend(install(part, shards.layout, shards.stored.tensors))
    )
    start(model, groups)
    return model


def start(model: nn.Module, groups: Sequence[Group], prefetch: bool = False) -> CodedWeights:
    """Check all groups, and decode from now on. The model is for inference: no parameter asks for gradients.

    Args:
        model: of the groups, filled.
        groups: of `install`.
        prefetch: on a GPU, decode the next group on a stream beside that of the computation.

    Raises:
        CheckpointError: a group is damaged.
    """
    model.requires_grad_(False)
    coded = CodedWeights(groups, torch.cuda if prefetch else None)
    coded.check()
    model.coded_weights = coded  # type: ignore[assignment]
    return coded
