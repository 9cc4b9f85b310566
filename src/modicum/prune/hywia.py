"""HyWIA: how much a head or neuron matters, judged by its single weights and as a whole, mixed by an attention.

With gradient g and Fisher information F of a group's weights w, its removal changes the loss by about w g - w^2 F / 2.

    fine      I_f = sum over its weights |w g - w^2 F / 2|         effects of single weights add up
    coarse    I_c = sum over its matrices |sum w g|                effects within a matrix may cancel

The two disagree on which groups are idle. Each is divided by its sum over the unit (all heads, or all neurons, of a
block), and the mix differs from group to group: the two scores stand as two tokens, and I = a_f I_f + a_c I_c with the
attention [a_f, a_c] that the tokens pay to themselves and each other.

Zeng et al., Toward Adaptive Large Language Models Structured Pruning via Hybrid-grained Weight Importance Assessment,
AAAI 2025, arXiv 2403.10799. alpha (1, 0) and (0, 1) are LLM-Pruner's element and vector scores (Ma et al., NeurIPS
2023, arXiv 2305.11627). There is no public code, and the paper leaves the features of the tokens open. Here they are,
of scores relative to their mean and on a logarithmic scale s = log(1 + I n): [s_f, 0, mean s_f, std s_f] and
[0, s_c, mean s_c, std s_c]; without the logarithm the attention is all or nothing. Recover with distill.finetune.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from modicum.allocate.width import even, lowest, lowest_of_each
from modicum.calibrate.taylor import Taylor, expand_loss
from modicum.errors import InvalidSetting
from modicum.method import Context, Paper
from modicum.models import Anatomy, Layer
from modicum.models.surgery import Cuttable
from modicum.prune.width import WidthMethod
from modicum.trainer.objective import Objective, Question

EPSILON = 1e-12
Expansion = Mapping[Layer, Taylor]


class HyWIA(WidthMethod):
    """Remove heads and neurons of least importance, which mixes the weights' one by one with the group's as a whole.

    I = a_f I_f + a_c I_c, I_f = sum |w g - w^2 F / 2|, I_c = sum over matrices |sum w g|; the lowest go.
    """

    paper: ClassVar[Paper] = Paper(
        "Toward Adaptive Large Language Models Structured Pruning via Hybrid-grained Weight Importance Assessment",
        "AAAI 2025",
        "2403.10799",
    )

    samples: int = Field(10, ge=1, description="calibration samples")
    alpha: Literal["adaptive"] | tuple[float, float] = Field(
        "adaptive", description="weights of the fine and the coarse score; [1, 0] and [0, 1] are LLM-Pruner"
    )
    scope: Literal["layer", "global"] = Field(
        "layer", description="rank within each block, or all blocks' groups against each other"
    )
    whole: tuple[int, int] | None = Field(
        None,
        description="first and last blocks that stay whole; 1/8 and 1/16 of them, rounded up, by default",
    )

    @model_validator(mode="after")
    def _mixes(self) -> HyWIA:
        if self.alpha != "adaptive" and (min(self.alpha) < 0 or abs(sum(self.alpha) - 1) > 1e-6):
            raise ValueError(
                f"alpha {list(self.alpha)} are no weights of a mean: two numbers that add up to 1"
            )
        return self

    def choose(
        self, anatomy: Anatomy, units: list[Cuttable], context: Context
    ) -> tuple[Mapping[Cuttable, Tensor], dict[str, Any]]:
        """The most important groups of the blocks in the middle."""
        middle = self._middle(units, len(anatomy.blocks))
        layers = list(dict.fromkeys(part.layer for unit in middle for part in unit.parts))
        losses = _reporting(self._losses(anatomy, context), context.progress)
        known = expand_loss(layers, losses)
        budget = self.budget(units)
        scores = {unit: self.score(unit, known) for unit in middle}
        if self.scope == "global":
            return lowest(scores, budget), {}
        return lowest_of_each(scores, even(middle, budget)), {}

    def score(self, unit: Cuttable, known: Expansion) -> Tensor:
        """Importance of each group, float64 [groups]; comparable between units if ranking is global."""
        scores = torch.stack((fine(unit, known), coarse(unit, known)))  # [2, groups]
        totals = scores.sum(1, keepdim=True) + EPSILON
        relative = scores / totals
        if self.alpha == "adaptive":
            alpha = attention(relative)
        else:
            alpha = scores.new_tensor(self.alpha)[:, None].expand_as(scores)
        return (alpha * (scores if self.scope == "global" else relative)).sum(0)

    def _middle(self, units: list[Cuttable], depth: int) -> list[Cuttable]:
        """What lies in blocks that are cut."""
        first, last = self.whole if self.whole is not None else usual_whole(depth)
        found = [unit for unit in units if first <= unit.block < depth - last]
        if min(first, last) < 0 or not found:
            raise InvalidSetting(
                f"{first} first and {last} last blocks stay whole, which leaves none of {depth}.",
                "Lower whole.",
            )
        return found

    def _losses(self, anatomy: Anatomy, context: Context) -> list[Callable[[], Tensor]]:
        objective, asked = self.ask(anatomy, context, batch=1)

        def loss(objective: Objective, question: Question) -> Tensor:
            return objective.loss(objective.answer(anatomy.model, question), question).mean()

        return [lambda question=question: loss(objective, question) for question in asked]  # type: ignore[misc]


def fine(unit: Cuttable, known: Expansion) -> Tensor:
    """I_f, float64 [groups]: what single weights do to the loss, summed up."""
    return _total(unit, known, _second_order, lambda effects: effects.abs().sum((1, 2)))


def coarse(unit: Cuttable, known: Expansion) -> Tensor:
    """I_c, float64 [groups]: what each group's part of a matrix does to the loss, summed up over matrices."""
    return _total(unit, known, _first_order, lambda effects: effects.sum((1, 2)).abs())


def _total(
    unit: Cuttable,
    known: Expansion,
    effect: Callable[[Tensor, Taylor], Tensor],
    reduce: Callable[[Tensor], Tensor],
) -> Tensor:
    parts = (
        reduce(part.of(effect(part.layer.weight.detach().float(), known[part.layer])).double())
        for part in unit.parts
    )
    return torch.stack(list(parts)).sum(0)


def _first_order(weight: Tensor, taylor: Taylor) -> Tensor:
    return weight * taylor.gradient


def _second_order(weight: Tensor, taylor: Taylor) -> Tensor:
    return weight * taylor.gradient - weight.square() * taylor.fisher / 2


def attention(relative: Tensor) -> Tensor:
    """The mix of every group, alpha [2, groups]; its columns add up to 1.

    Args:
        relative: fine and coarse score of each group, divided by their sums, [2, groups].
    """
    s = (relative * relative.shape[1]).log1p()
    mean = s.mean(1, keepdim=True).expand_as(s)
    deviation = s.std(1, correction=0, keepdim=True).expand_as(s)
    own = torch.diag_embed(s.t())  # [groups, 2, 2]: every score in a place of its own
    tokens = torch.cat((own, mean.t()[..., None], deviation.t()[..., None]), dim=-1)  # [groups, 2, 4]
    paid = (tokens @ tokens.mT / 2).softmax(-1)  # [groups, 2, 2]
    return paid.mean(1).t()


def usual_whole(depth: int) -> tuple[int, int]:
    """First and last blocks that LLM-Pruner leaves whole (4 and 2 of 32), for another depth; none of one or two."""
    return (-(-depth // 8), -(-depth // 16)) if depth > 2 else (0, 0)


def _reporting(
    losses: list[Callable[[], Tensor]], tell: Callable[[str], None]
) -> Iterator[Callable[[], Tensor]]:
    for index, loss in enumerate(losses, start=1):
        yield loss
        tell(f"sample {index}/{len(losses)}")
