"""Slices of a fused expert tensor, stored one form per matrix.

transformers keeps all experts of a block in two fused parameters, gate_up_proj [experts, 2f, d] and down_proj
[experts, d, f], while checkpoints and modicum's forms have one matrix per expert. An `ExpertStore` stands in for the
fused module while the checkpoint is read and is then expanded into it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modicum.errors import CheckpointError
from modicum.weights.base import WeightForm


class ExpertStore(nn.Module):
    """Holds the forms of `experts.E.gate_proj|up_proj|down_proj` until they can be fused.

    Args:
        fused: the module to fill; kept out of the module tree so that its parameters are not expected on disk.
    """

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        self._fused = [fused]

    def add(self, path: str, form: WeightForm) -> None:
        """Take in the form of one matrix, `path` being "3.gate_proj"."""
        expert, _, leaf = path.partition(".")
        if leaf not in ("gate_proj", "up_proj", "down_proj") or not expert.isdigit():
            raise CheckpointError(
                f"modicum.json names the expert matrix {path!r}, which is not one of a fused tensor."
            )
        if expert not in self._modules:
            self.add_module(expert, nn.Module())
        self.get_submodule(expert).add_module(leaf, form)

    def expanded(self) -> nn.Module:
        """The fused module with dense weights."""
        fused = self._fused[0]
        for name in ("gate_up_proj", "down_proj"):
            like = getattr(fused, name)
            weights = [self._dense(expert, name) for expert in range(like.shape[0])]
            stacked = torch.stack(weights)
            if stacked.shape != like.shape:
                raise CheckpointError(
                    f"{name} has the shape {tuple(like.shape)}, its experts {tuple(stacked.shape)}."
                )
            setattr(fused, name, nn.Parameter(stacked, requires_grad=False))
        return fused

    def _dense(self, expert: int, name: str) -> Tensor:
        holder = self._modules.get(str(expert))
        leaves = ("gate_proj", "up_proj") if name == "gate_up_proj" else ("down_proj",)
        parts = []
        for leaf in leaves:
            form = getattr(holder, leaf, None)
            if not isinstance(form, WeightForm):
                raise CheckpointError(f"modicum.json lacks expert {expert}'s {leaf}.")
            form.check()
            parts.append(form.to_dense())
        return torch.cat(parts)
