"""Slices of a fused expert tensor, stored one form per matrix.

transformers keeps all experts of a block in two fused parameters, gate_up_proj [experts, 2f, d] and down_proj
[experts, d, f], while checkpoints and modicum's forms have one matrix per expert. An `ExpertStore` stands in for the
fused module while the checkpoint is read and is then expanded into it. On disk the tensors of a slice lie one level
below the name of its layer, where no weight conversion of transformers looks for them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from modicum.errors import CheckpointError
from modicum.models.layer import Layer
from modicum.weights.base import WeightForm

FUSED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
SLOT = "form"


def stored_under(layer: Layer) -> str:
    """Where the tensors of a layer's form lie in a checkpoint."""
    return layer.name if layer.expert is None else f"{layer.name}.{SLOT}"


class ExpertStore(nn.Module):
    """Holds the forms of `experts.E.gate_proj|up_proj|down_proj` until they can be fused.

    Args:
        fused: the module to fill; kept out of the module tree so that its parameters are not expected on disk.

    Raises:
        CheckpointError: it has no fused expert tensors.
    """

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        if any(getattr(getattr(fused, name, None), "ndim", 0) != 3 for name in FUSED):
            raise CheckpointError(f"modicum.json names experts of {type(fused).__name__}, which has none.")
        self._fused: list[Any] = [fused]

    def add(self, path: str, form: WeightForm) -> None:
        """Take in the form of one matrix, `path` being "3.gate_proj".

        Raises:
            CheckpointError: there is no such matrix.
        """
        expert, _, leaf = path.partition(".")
        count = len(self._fused[0].down_proj)
        known = any(leaf in leaves for leaves in FUSED.values())
        if not known or not expert.isdecimal() or int(expert) >= count:
            raise CheckpointError(
                f"modicum.json names the expert matrix {path!r}, which is not one of a fused tensor."
            )
        if expert not in self._modules:
            self.add_module(expert, nn.Module())
        holder = nn.Module()
        holder.add_module(SLOT, form)
        self.get_submodule(expert).add_module(leaf, holder)

    def expanded(self, dtype: torch.dtype | None = None) -> nn.Module:
        """The fused module with dense weights, cast to `dtype` if given.

        Raises:
            CheckpointError: a slice is missing, damaged, or of another shape.
        """
        fused = self._fused[0]
        for name, leaves in FUSED.items():
            like = getattr(fused, name)
            weights = [torch.cat([self._dense(i, leaf) for leaf in leaves]) for i in range(len(like))]
            if any(weight.shape != like.shape[1:] for weight in weights):
                raise CheckpointError(f"The slices of {name} do not have the shape {list(like.shape[1:])}.")
            setattr(fused, name, nn.Parameter(torch.stack(weights).to(dtype), like.requires_grad))
        return fused

    def _dense(self, expert: int, leaf: str) -> Tensor:
        try:
            form = self.get_submodule(f"{expert}.{leaf}.{SLOT}")
        except AttributeError as error:
            raise CheckpointError(f"modicum.json lacks expert {expert}'s {leaf}.") from error
        assert isinstance(form, WeightForm)
        form.check()
        return form.to_dense()
