"""LoRA that trains what will be stored: W becomes mask * (W + (alpha / r) B A), in training and for good afterwards.

Usual LoRA adds (alpha / r) B A x to W x. Merged into a pruned W, B A would fill all zeros; merged under the mask, the
model is another one than was trained. So here the mask lies over the sum in every forward pass (the weight of a layer
is computed when it is read), and merging only writes down what was computed: the loss that was trained is the loss of
what is stored. The mask is read off W, which does not move: nothing is stored beside it.

Hu et al., ICLR 2022, arXiv 2106.09685. The computed weights live from the forward pass to the backward pass, as large
as those they come from; with `recompute` only those of one block do. `modicum.trainer.lora` adds B A x instead, through
PEFT, where nothing is merged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from modicum.errors import UnsupportedModel
from modicum.models import Anatomy, Layer


class LowRankUpdate(nn.Module):
    """A weight [rows, columns] plus scale B A, which begins at zero, with zeros wherever the weight has one.

    Args:
        weight: gives shape, dtype and device.
        rank: r.
        scale: alpha / r.
        masked: whether zeros stay.
        generator: of A, on the CPU.
    """

    def __init__(
        self, weight: Tensor, rank: int, scale: float, masked: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        rows, columns = weight.shape
        bound = columns**-0.5
        a = torch.empty(rank, columns).uniform_(-bound, bound, generator=generator)
        self.a = nn.Parameter(a.to(weight))
        self.b = nn.Parameter(weight.new_zeros(rows, rank))
        self.scale, self.masked = scale, masked

    def forward(self, weight: Tensor) -> Tensor:
        """[rows, columns] to [rows, columns]."""
        with torch.autocast(weight.device.type, enabled=False):  # what is stored is computed in full
            updated = torch.addmm(weight, self.b, self.a, alpha=self.scale)
        return updated.masked_fill(weight == 0, 0.0) if self.masked else updated


@contextmanager
def merged_lora(
    anatomy: Anatomy, rank: int, alpha: int, seed: int, masked: Collection[str] = ()
) -> Iterator[list[nn.Parameter]]:
    """A context in which only low-rank updates of the linear layers of all blocks are trained; leaving it merges them.

    After an exception the weights are what they were before.

    Args:
        anatomy: of the model, which is changed in place; expert tensors, convolutions and all else stay as they are.
        rank: r.
        alpha: updates are scaled by alpha / rank.
        seed: of A.
        masked: names of layers whose zeros stay.

    Yields:
        The weights A and B of all updates.

    Raises:
        UnsupportedModel: no block has a linear layer.
    """
    layers = [layer for layer in anatomy.layers() if layer.kind in ("linear", "conv1d")]
    if not layers:
        raise UnsupportedModel(
            f"{type(anatomy.model).__name__} has no linear layer that LoRA could update.",
            "Leave lora out to train all weights.",
        )
    generator = torch.Generator().manual_seed(seed)
    learning = {parameter: parameter.requires_grad for parameter in anatomy.model.parameters()}
    anatomy.model.requires_grad_(False)
    modules, updates = [layer.module for layer in layers], []
    merge = False
    try:
        for layer, module in zip(layers, modules, strict=True):
            updates.append(_update(layer, rank, alpha / rank, layer.name in masked, generator))
            parametrize.register_parametrization(module, "weight", updates[-1])
        yield [parameter for update in updates for parameter in (update.a, update.b)]
        merge = True
    finally:
        for module in modules[: len(updates)]:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=merge)
        for parameter, needed in learning.items():
            parameter.requires_grad_(needed)


def _update(layer: Layer, rank: int, scale: float, masked: bool, generator: torch.Generator) -> LowRankUpdate:
    return LowRankUpdate(layer.tensor.detach(), rank, scale, masked, generator)
