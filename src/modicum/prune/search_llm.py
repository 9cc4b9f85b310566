"""Search for efficient language models: which heads and neurons, found by evolution, and weights that make up for them.

A trained model holds many smaller ones: choose for every block how many heads and neurons stay, and which. Evolution
looks for the choice of least loss at a given size, a few hundred tokens per candidate, no gradients, no training.
Which groups stay follows from their importance at first, sum_i W_ij^2 / [(2 X X^T)^-1]_jj over the channels j of a
group in its reading matrix (o, down), and is mutated later. At last the reading matrices are solved anew, block by
block, so that what stays says what it can of what goes (`modicum.kernels.reform`).

Shen et al., Search for Efficient Large Language Models, NeurIPS 2024, arXiv 2409.17372. Departures: depth is fixed, as
in the published search space; whole heads go with their keys; neurons come in any number and are fitted to the size
instead of thrown away; one of the first candidates is even, so that the search never ends behind it; the best are
ranked once more on more text; reformation solves its problem exactly instead of 20 steps of ADMM, and its mask is the
right way round.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from modicum.allocate.evolution import Evolution, Log, Scored
from modicum.allocate.width import even, parameters
from modicum.allocate.width_space import Candidate, WidthSpace
from modicum.calibrate.block import CalibratedBlock
from modicum.calibrate.readers import visit
from modicum.calibrate.statistics import Statistics
from modicum.errors import InvalidSetting
from modicum.kernels.cholesky import inverse_cholesky
from modicum.kernels.reform import reform
from modicum.method import Context, Paper
from modicum.models import Anatomy, Block
from modicum.models.surgery import Cuttable, masked
from modicum.prune.width import WidthMethod, inputs_of
from modicum.trainer.objective import Objective, Question

LOG = "candidates.jsonl"


class SearchLLM(WidthMethod):
    """Find by evolution which heads and neurons stay, then solve the matrices that read them anew.

    Least loss on a few windows at a given size; W'_k = W A_:,k (A_kk)^-1 with the damped Gram matrix A of the inputs.
    """

    paper: ClassVar[Paper] = Paper("Search for Efficient Large Language Models", "NeurIPS 2024", "2409.17372")

    windows: int = Field(5, ge=1, description="windows that a candidate's loss is measured on")
    length: int = Field(2048, ge=2, description="tokens of each window")
    generations: int = Field(30, ge=0, description="generations after the first, random one")
    population: int = Field(500, ge=1, description="candidates of a generation")
    top: int = Field(300, ge=1, description="the best ever, which may be parents")
    mutations: int = Field(350, ge=0, description="mutations of a generation")
    crossovers: int = Field(100, ge=0, description="crossings of a generation; random candidates fill up")
    rate: float = Field(0.2, gt=0, le=1, description="probability with which a mutation touches a mask")
    fewest_heads: float = Field(
        0.9375, gt=0, le=1, description="fraction of a block's heads that stay at least"
    )
    finalists: int = Field(10, ge=1, description="the best candidates, ranked once more on all samples")
    reformation: bool = Field(True, description="whether weights make up for what goes")
    damp: float = Field(0.1, gt=0, description="damping of the reformation, fraction of the mean diagonal")

    def choose(
        self, anatomy: Anatomy, units: list[Cuttable], context: Context
    ) -> tuple[Mapping[Cuttable, Tensor], dict[str, Any]]:
        """The best choice of the size that was found; reading matrices are solved anew for it."""
        objective, asked = self.ask(anatomy, context)
        shown = [inputs_of(question) for question in asked]
        space = self._space(units, importance(anatomy, units, shown))
        best = self._search(anatomy, space, objective, asked, context)
        kept = {unit: mask.nonzero()[:, 0] for unit, mask in zip(units, best.candidate, strict=True)}
        if self.reformation:
            reform_readers(anatomy, kept, shown, self.damp)
        return kept, {"loss": best.loss}

    def _space(self, units: list[Cuttable], scores: Sequence[Tensor]) -> WidthSpace:
        fewest = [
            max(1, min(unit.count - 1, int(self.fewest_heads * unit.count))) if unit.kind == "heads" else 1
            for unit in units
        ]
        return WidthSpace(units, scores, fewest, parameters(units) - self.budget(units), rate=self.rate)

    def _search(
        self,
        anatomy: Anatomy,
        space: WidthSpace,
        objective: Objective,
        asked: Sequence[Question],
        context: Context,
    ) -> Scored:
        few = _first(asked, self.windows)

        def loss_on(questions: Sequence[Question]) -> Callable[[Candidate], float]:
            return lambda candidate: loss_of(anatomy, space.units, candidate, objective, questions)

        def told(generation: int, best: float) -> None:
            context.progress(f"generation {generation}/{self.generations}  loss {best:.4f}")

        work = context.work_directory
        log = Log(loss_on([few]), None if work is None else work / LOG, self._identity(anatomy, few))
        evolution = Evolution(self.generations, self.population, self.top, self.mutations, self.crossovers)
        found = evolution.run(space, log, context.generator, self._begin(space), told)[: self.finalists]
        again = loss_on(asked)
        return min((Scored(again(each.candidate), each.candidate) for each in found), key=lambda s: s.loss)

    def _begin(self, space: WidthSpace) -> list[Candidate]:
        """The same share of every block, if that is possible."""
        try:
            gone = even(space.units, self.budget(list(space.units)))
        except InvalidSetting:
            return []
        return [space.sized([unit.count - gone[unit] for unit in space.units])]

    def _identity(self, anatomy: Anatomy, question: Question) -> dict[str, Any]:
        """Everything that a candidate's loss depends on."""
        shown = b"".join(value.cpu().numpy().tobytes() for value in question.values())
        return {
            "method": self.name,
            "model": type(anatomy.model).__name__,
            "parameters": sum(parameter.numel() for parameter in anatomy.model.parameters()),
            "windows": hashlib.sha256(shown).hexdigest(),
        }


def _first(questions: Sequence[Question], count: int) -> Question:
    """The first samples of several questions as one."""
    return {name: torch.cat([question[name] for question in questions])[:count] for name in questions[0]}


@torch.no_grad()
def loss_of(
    anatomy: Anatomy,
    units: Sequence[Cuttable],
    candidate: Candidate,
    objective: Objective,
    questions: Sequence[Question],
) -> float:
    """Mean loss of the model with these masks over all samples."""
    with masked(dict(zip(units, candidate, strict=True))):
        losses = [
            objective.loss(objective.answer(anatomy.model, question), question) for question in questions
        ]
    return float(torch.cat(losses).double().mean())


def importance(
    anatomy: Anatomy, units: Sequence[Cuttable], batches: Sequence[dict[str, Tensor]]
) -> list[Tensor]:
    """Importance of the groups of each unit, float32 [groups]."""
    found: dict[Cuttable, Tensor] = {}

    def look(block: Block, seen: CalibratedBlock) -> None:
        for unit in units:
            if unit.block == block.index:
                found[unit] = group_importance(unit, seen.statistics[unit.reader.layer.name])

    visit(anatomy, batches, _grams(units), look)
    return [found[unit] for unit in units]


def group_importance(unit: Cuttable, statistics: Statistics) -> Tensor:
    """sum_i W_ij^2 / [(2 X X^T)^-1]_jj, summed over the channels j of each group, float32 [groups]."""
    factor, dead, _ = inverse_cholesky(2 * statistics.gram, damp=0.01)  # H^-1 = U^T U
    weight = unit.reader.layer.weight.detach().float()
    per_channel = weight.square().sum(0) / factor.square().sum(0)  # [in]
    return per_channel.masked_fill(dead, 0)[unit.reader.members].sum(1)


def reform_readers(
    anatomy: Anatomy, kept: dict[Cuttable, Tensor], batches: Sequence[dict[str, Tensor]], damp: float
) -> None:
    """Solve the reading matrices anew, block by block; what is about to be cut becomes zero in them.

    Args:
        anatomy: dense.
        kept: groups that stay, of each unit.
        batches: inputs of the model.
        damp: see `reform`.
    """

    def solve(block: Block, seen: CalibratedBlock) -> None:
        for unit, groups in kept.items():
            if unit.block == block.index and len(groups) < unit.count:
                layer = unit.reader.layer
                stays = torch.zeros(layer.in_features, dtype=torch.bool, device=groups.device)
                stays[unit.columns(groups)] = True
                gram = seen.statistics[layer.name].gram
                layer.set_weight(reform(layer.weight.detach(), gram, stays, damp))

    visit(anatomy, batches, _grams(list(kept)), solve)


def _grams(units: Sequence[Cuttable]) -> dict[str, frozenset[str]]:
    return {unit.reader.layer.name: frozenset({"gram"}) for unit in units}
