"""Remove channels, or set them to zero: the same function either way, in a smaller or an unchanged model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modicum.errors import InvalidSetting
from modicum.models.channels.coupling import Channels, Slot

Removed = NDArray[np.bool_]


def cut(model: nn.Module, channels: Channels, removed: Removed) -> None:
    """Remove channels: every tensor that holds one gets shorter, in place.

    Args:
        model: as it was when `channels` were found.
        channels: from `couple`; they describe the model no longer afterwards.
        removed: bool [channels].

    Raises:
        InvalidSetting: a channel that must stay, or all channels of a layer; nothing was changed.
    """
    kept = list(_kept(model, channels, removed))
    for slot, positions in kept:
        if len(positions) < len(slot.channels):
            module, name, tensor = _located(model, slot)
            shorter = tensor.detach().index_select(slot.dim, torch.from_numpy(positions).to(tensor.device))
            if isinstance(tensor, nn.Parameter):
                setattr(module, name, nn.Parameter(shorter, tensor.requires_grad))
            else:
                setattr(module, name, shorter)
    for owner in {slot.tensor.rpartition(".")[0] for slot, _ in kept}:
        _count(model.get_submodule(owner))


def zero(model: nn.Module, channels: Channels, removed: Removed) -> None:
    """Set channels to zero where they are made and where they are normalized; arguments and errors as for `cut`.

    The function is that of the cut model wherever activations map 0 to 0, as ReLU, GELU and SiLU do.
    """
    list(_kept(model, channels, removed))
    with torch.no_grad():
        for slot in channels.slots:
            _, name, tensor = _located(model, slot)
            if slot.dim == 0 and name in ("weight", "bias"):
                tensor[torch.from_numpy(removed[slot.channels]).to(tensor.device)] = 0


def _kept(model: nn.Module, channels: Channels, removed: Removed) -> Iterator[tuple[Slot, NDArray[np.int64]]]:
    """Every axis, and the positions that stay along it."""
    if (removed & channels.fixed).any():
        raise InvalidSetting(
            "Inputs and outputs of the model cannot be removed.", "Choose among `Channels.groups`."
        )
    for slot in channels.slots:
        positions = np.flatnonzero(~removed[slot.channels])
        if not len(positions) and isinstance(_located(model, slot)[2], nn.Parameter):
            raise InvalidSetting(f"Nothing would be left of {slot.tensor}.", "Remove fewer channels.")
        yield slot, positions


def _located(model: nn.Module, slot: Slot) -> tuple[nn.Module, str, Tensor]:
    owner, _, name = slot.tensor.rpartition(".")
    module = model.get_submodule(owner)
    tensor: Tensor = getattr(module, name)
    return module, name, tensor


def _count(module: nn.Module) -> None:
    """What layers say of their width, from the tensors that they hold."""
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        rows, width = module.weight.shape[:2]
        if module.groups > 1 and module.in_channels == module.groups:
            module.groups = rows * module.groups // module.out_channels
        module.out_channels, module.in_channels = rows, width * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        held = module.running_mean if module.running_mean is not None else module.weight
        module.num_features = len(held)
