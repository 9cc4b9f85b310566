"""How much every block changes the hidden states that pass through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.errors import UnusableData
from modicum.models import Anatomy


@dataclass(frozen=True)
class Influence:
    """Means over all tokens that were seen, float64 `[blocks]`.

    Attributes:
        angle: 1 - cos(what enters a token's state, what leaves it).
        distance: mean squared difference of the two.
    """

    angle: Tensor
    distance: Tensor


@torch.no_grad()
def influence(anatomy: Anatomy, forwards: Iterable[Callable[[], Any]]) -> Influence:
    """Watch the blocks while the model runs.

    Args:
        anatomy: of a model whose blocks read and return hidden states `[..., tokens, channels]`.
        forwards: each runs the model once.

    Raises:
        UnusableData: there is nothing to run.
    """
    sums = [_Sums() for _ in anatomy.blocks]
    with ExitStack() as stack:
        for block, kept in zip(anatomy.blocks, sums, strict=True):
            hook = block.module.register_forward_hook(kept.hook, with_kwargs=True)
            stack.callback(hook.remove)
        for forward in forwards:
            forward()
    if not all(kept.tokens for kept in sums):
        raise UnusableData("No token passed through the blocks.", "Give at least one batch.")
    angles, distances = zip(*(kept.means() for kept in sums), strict=True)
    return Influence(torch.stack(angles).cpu(), torch.stack(distances).cpu())


class _Sums:
    """Running sums of one block."""

    def __init__(self) -> None:
        self.tokens = 0
        self.angle: Tensor | float = 0.0
        self.distance: Tensor | float = 0.0

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        before = (args[0] if args else kwargs["hidden_states"]).float()
        after = (output[0] if isinstance(output, tuple) else output).float()
        self.tokens += before.shape[:-1].numel()
        self.angle = self.angle + (1 - F.cosine_similarity(before, after, dim=-1)).double().sum()
        self.distance = self.distance + (after - before).square().mean(-1).double().sum()

    def means(self) -> tuple[Tensor, Tensor]:
        assert isinstance(self.angle, Tensor)
        assert isinstance(self.distance, Tensor)
        return self.angle / self.tokens, self.distance / self.tokens
