"""Switches that are drawn: a probability for every choice of blocks, and a network that draws one per sample."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Any

import torch
from torch import Tensor, nn

from modicum.models import Anatomy
from modicum.models.depth import Groups, candidates, gate, spans

INITIAL_LOGIT = 0.02


class Gates(nn.Module):
    """The logits of all groups, and masks drawn from them.

    Args:
        groups: (N, M) of each group.

    Attributes:
        tau, scaling: see the formula above.
        generator: of the Gumbel noise, on the device of the logits.
    """

    def __init__(self, groups: Groups) -> None:
        super().__init__()
        self.groups = groups
        self.logits = nn.ParameterList(torch.full((1, comb(of, keep)), INITIAL_LOGIT) for keep, of in groups)
        self.tables = [candidates(keep, of) for keep, of in groups]
        self.tau, self.scaling = 1.0, 1.0
        self.generator: torch.Generator | None = None

    def draw(self, batch: int) -> list[Tensor]:
        """Gumbel noise for every group, `[batch, C]`."""
        return [
            -torch.empty(batch, g.shape[1], device=g.device).exponential_(generator=self.generator).log()
            for g in self.logits
        ]

    def masks(self, noise: Sequence[Tensor]) -> Tensor:
        """Which blocks are on, `[batch, blocks]`: exact zeros and ones, with the gradient of the softmax."""
        with torch.autocast(noise[0].device.type, enabled=False):
            parts = [
                straight_through((self.scaling * g.float() + gumbel) / self.tau) @ table.to(g.device)
                for g, gumbel, table in zip(self.logits, noise, self.tables, strict=True)
            ]
        return torch.cat(parts, dim=1)

    def kept(self) -> list[int]:
        """The blocks of the likeliest choice of every group; the first of equal ones."""
        rows = [table[int(g.argmax())] for g, table in zip(self.logits, self.tables, strict=True)]
        return [
            block
            for span, row in zip(spans(self.groups), rows, strict=True)
            for block, on in zip(span, row, strict=True)
            if on
        ]

    def probabilities(self) -> list[Tensor]:
        """Of every choice of every group, `[C]`."""
        return [(self.scaling * g.detach().float()).softmax(1)[0] for g in self.logits]

    def kept_probability(self) -> Tensor:
        """Of every block, that it is on: the sum over the choices that keep it, `[blocks]`."""
        tables = (table.to(self.logits[0].device) for table in self.tables)
        return torch.cat([p @ table for p, table in zip(self.probabilities(), tables, strict=True)])

    def confidence(self) -> Tensor:
        """Of the likeliest choice, by group, `[groups]`."""
        return torch.stack([p.max() for p in self.probabilities()])


def straight_through(scores: Tensor) -> Tensor:
    """One-hot of the largest score in every row, with the gradient of the softmax; `[B, C]`."""
    soft = scores.softmax(dim=1)
    hard = torch.zeros_like(soft).scatter_(1, soft.argmax(1, keepdim=True), 1.0)
    return hard - soft.detach() + soft


class GatedNetwork(nn.Module):
    """A model that draws, for every sample of every forward pass, which of its blocks are on.

    Args:
        anatomy: of the model, whose blocks get switches; `ungate(anatomy)` takes them out again.
        gates: the logits.
        recompute: compute activations again in the backward pass.
    """

    def __init__(self, anatomy: Anatomy, gates: Gates, recompute: bool = False) -> None:
        super().__init__()
        self.switches = tuple(gate(anatomy, recompute))  # a tuple: they are modules of the model already
        self.model = anatomy.model
        self.gates = gates

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model, with arguments whose first axis is the sample."""
        batch = len(next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)))
        self.switch(self.gates.masks(self.gates.draw(batch)))
        return self.model(*args, **kwargs)

    def switch(self, masks: Tensor) -> None:
        """Set the switches, `[B, blocks]`."""
        for switch, mask in zip(self.switches, masks.unbind(1), strict=True):
            switch.mask = mask
