"""FLAP: remove what hardly varies, and put its mean into a bias.

A channel whose input is nearly constant can be replaced by a constant: what the reading matrix made of its mean becomes
a bias, and only its fluctuation is lost. For the input x_j of a reading matrix W (o, down, fc2) and calibration tokens:

    m_j = mean x_j      v_j = var x_j      score_j = v_j sum_i W_ij^2         (squared once more for heads)

Scores are standardised within each matrix, a head has the mean of its channels, and the lowest of the whole model go.
The bias is b = W[:, removed] m_removed.

An et al., Fluctuation-based Adaptive Structured Pruning for Large Language Models, AAAI 2024, arXiv 2312.11983.
Departures: groups count with their true number of parameters (the published code weighs every head as 512/3 neurons,
right for heads of 128 without shared keys), and mean and variance are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from modicum.allocate.width import lowest
from modicum.calibrate.block import CalibratedBlock
from modicum.calibrate.readers import visit
from modicum.calibrate.statistics import Statistics
from modicum.method import Context, Paper
from modicum.models import Anatomy, Block, Layer
from modicum.models.surgery import Cuttable
from modicum.prune.width import WidthMethod, inputs_of


class FLAP(WidthMethod):
    """Remove heads and neurons whose output fluctuates least, and turn their mean into a bias.

    score_j = var(x_j) sum_i W_ij^2, standardised per matrix; the lowest go; b = W[:, removed] mean(x_removed).
    """

    paper: ClassVar[Paper] = Paper(
        "Fluctuation-based Adaptive Structured Pruning for Large Language Models", "AAAI 2024", "2312.11983"
    )

    samples: int = Field(1024, ge=1, description="calibration samples")
    bias: bool = Field(True, description="whether the mean of what is removed becomes a bias")

    def choose(
        self, anatomy: Anatomy, units: list[Cuttable], context: Context
    ) -> tuple[Mapping[Cuttable, Tensor], dict[str, Any]]:
        """The groups that fluctuate most; biases are set for the others."""
        _, asked = self.ask(anatomy, context)
        scores: dict[Cuttable, Tensor] = {}
        means: dict[Cuttable, Tensor] = {}

        def look(block: Block, seen: CalibratedBlock) -> None:
            for unit in (unit for unit in units if unit.block == block.index):
                statistics = seen.statistics[unit.reader.layer.name]
                scores[unit], means[unit] = standard_scores(unit, statistics), statistics.column_mean
            context.progress(f"block {block.index + 1}/{len(anatomy.blocks)}")

        wanted = {unit.reader.layer.name: frozenset({"column_var"}) for unit in units}
        visit(anatomy, [inputs_of(question) for question in asked], wanted, look)
        kept = lowest(scores, self.budget(units))
        if self.bias:
            for unit, groups in kept.items():
                compensate(unit, groups, means[unit])
        return kept, {}


def fluctuation(weight: Tensor, variance: Tensor) -> Tensor:
    """What is lost with each input channel if its mean stays: variance [in] times ||weight[:, j]||^2, [in]."""
    return variance.double() * weight.detach().double().square().sum(0)


def standard_scores(unit: Cuttable, statistics: Statistics) -> Tensor:
    """The score of each group, standardised over the channels of its matrix, float64 [groups]."""
    score = fluctuation(unit.reader.layer.weight, statistics.column_var)
    if unit.kind == "heads":
        score = score.square()
    spread = score.std().clamp_min(torch.finfo(score.dtype).tiny) if len(score) > 1 else 1.0
    return ((score - score.mean()) / spread)[unit.reader.members].mean(1)


@torch.no_grad()
def compensate(unit: Cuttable, kept: Tensor, mean: Tensor) -> None:
    """Give the reading matrix a bias for the mean [in] of all channels that are about to go.

    Args:
        unit: what will be cut.
        kept: groups that stay.
        mean: of every input channel.
    """
    layer: Layer = unit.reader.layer
    gone = torch.ones_like(mean, dtype=torch.bool)
    gone[unit.columns(kept)] = False
    if bool(gone.any()):
        weight = layer.weight.detach()
        added = weight[:, gone].float() @ mean[gone]  # [out]
        layer.resize(weight, added if layer.bias is None else layer.bias.detach().float() + added)
