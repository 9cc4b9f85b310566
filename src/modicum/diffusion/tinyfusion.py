"""TinyFusion: learn which blocks to remove, by how well the rest would recover.

A block whose removal hurts least right now is not the one whose loss is easiest to make up for by training. So the
choice is learned together with a cheap imitation of that training. The stack is cut into groups of M consecutive
blocks, N of which stay; each group has one logit per way to choose them. Every forward pass draws a choice per sample
and group (Gumbel-softmax, straight through), switches the other blocks off, and trains the logits and a LoRA update on
the model's own loss. In the end each group keeps its likeliest choice; the update is thrown away, and what is left of
the original weights is trained again (`distill.masked_kd`).

    y = softmax((s g + gumbel) / tau), made one-hot forward       g: logits [1, C(M, N)], s: scaling
    m = y @ candidates                                            [B, M], 1: the block is on
    x <- m_j block_j(x) + (1 - m_j) x

tau shapes the gradient only, never what is drawn; the choice sharpens because the logits move apart, s times over.

Fang et al., TinyFusion: Diffusion Transformers Learned Shallow, CVPR 2025, arXiv 2412.01199. This follows the
published code where it differs from the paper: raw logits instead of log-probabilities (equal up to a constant), and
no weight gradient through a block that is off for a sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from modicum.diffusion.gates import GatedNetwork, Gates
from modicum.errors import UnusableData
from modicum.method import Context, ModelMethod, Paper
from modicum.models import Anatomy
from modicum.models.depth import GroupSetting, as_groups, keep_blocks, spans, ungate
from modicum.trainer import (
    Batch,
    Group,
    Loss,
    Moment,
    Objective,
    Settings,
    Trainer,
    lora,
    objective_of,
    usual_decay,
)


class TinyFusion(ModelMethod):
    """Remove blocks, chosen by a learned mask: those without which the model recovers best.

    Each group of M blocks keeps N. Logits of all choices are trained with Gumbel-softmax and straight-through masks
    per sample, beside a low-rank update of the weights that imitates the recovery; decided by the moving average.
    """

    paper: ClassVar[Paper] = Paper(
        "TinyFusion: Diffusion Transformers Learned Shallow", "CVPR 2025", "2412.01199"
    )

    groups: GroupSetting = Field(
        "1:2", description="N:M for all blocks, or one [N, M] per group: N of M blocks stay"
    )
    update: Literal["lora", "full", "frozen"] = Field(
        "lora", description="which weights move while the mask is learned"
    )
    rank: int = Field(8, ge=1, description="rank of the LoRA update; its alpha is twice the rank")
    steps: int = Field(10_009, ge=1, description="training steps")
    batch: int = Field(128, ge=1, description="samples per step, in parts of `accumulate`")
    accumulate: int = Field(1, ge=1, description="forward passes that share a step")
    lr: float = Field(1e-4, gt=0, description="learning rate of the update")
    gate_lr: float = Field(1e-3, gt=0, description="learning rate of the logits")
    tau: tuple[float, float] = Field((4.0, 0.1), description="Gumbel temperature, from first to last step")
    scaling: tuple[float, float] = Field((100.0, 100.0), description="scale of the logits, likewise")
    average: float | None = Field(
        None, gt=0, lt=1, description="decay of the moving average; 1 - 10 / steps (0.999 as published)"
    )
    bf16: bool = Field(False, description="train under bfloat16 autocast")
    recompute: bool = Field(False, description="compute activations twice instead of keeping them")

    @model_validator(mode="after")
    def _divides(self) -> TinyFusion:
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} is not a multiple of accumulate {self.accumulate}")
        return self

    def samples_read(self) -> int:
        """The samples of all steps."""
        return self.steps * self.batch

    def blocks_kept(self, stacks: Sequence[int]) -> tuple[int, ...]:
        """What the groups keep; every group lies in one stack."""
        groups = as_groups(self.groups, *stacks)
        starts = [span.start for span in spans(groups)]
        ranges = [range(end - of, end) for end, of in zip(accumulate(stacks), stacks, strict=True)]
        return tuple(
            sum(keep for start, (keep, _) in zip(starts, groups, strict=True) if start in stack)
            for stack in ranges
        )

    def transform(self, anatomy: Anatomy, context: Context) -> Anatomy:
        """The model without the blocks that the learned mask switches off; its weights are the original ones.

        Raises:
            InvalidSetting: the groups do not add up to the depth, or reach from one stack into another.
            UnusableData: the context holds no training data.
            NotFinite: ten steps in a row had no finite loss.
        """
        gates = Gates(as_groups(self.groups, *anatomy.stacks)).to(context.device)
        seed = int(torch.randint(2**31, (1,), generator=context.generator))
        with (
            self._updating(anatomy.model, seed) as weights,
            _gated(anatomy, gates, self.recompute) as network,
        ):
            groups = [Group(list(gates.parameters()), self.gate_lr), Group(weights, self.lr)]
            trainer = self._trainer(network, groups, context, seed)
            done = trainer.run()
            gates.scaling = self.scaling[1]  # a search that had finished before sets it nowhere else
            with trainer.averaged():
                kept, confidence = gates.kept(), gates.confidence().tolist()
        context.notes[self.name] = {
            "kept_blocks": kept,
            "of_blocks": len(anatomy.blocks),
            "groups": gates.groups,
            "confidence": [round(value, 6) for value in confidence],
            "loss": done.loss,
            "skipped_steps": done.skipped,
            "history": trainer.history.notes(),
        }
        return keep_blocks(anatomy, kept)

    def _trainer(self, network: GatedNetwork, groups: list[Group], context: Context, seed: int) -> Trainer:
        if context.data is None:
            raise UnusableData(f"{self.name} trains and needs data.", "Name a source of data.")
        objective = context.objective or objective_of(network.model)
        return Trainer(
            network,
            groups,
            self.loss(network.gates, objective),
            context.data.batches(self.batch // self.accumulate, seed),
            self._schedule(seed),
            context.work_directory,
            {
                "method": self.name,
                **self.settings(),
                "parameters": sum(p.numel() for p in network.parameters()),
            },
            context.device,
            report=context.progress,
            watch=lambda: watched(network.gates),
        )

    def _schedule(self, seed: int) -> Settings:
        decay = self.average or usual_decay(self.steps)
        return Settings(
            steps=self.steps, accumulate=self.accumulate, average=decay, bf16=self.bf16, seed=seed
        )

    def loss(self, gates: Gates, objective: Objective) -> Loss:
        """The model's own loss under freshly drawn masks, as the training loop calls it."""

        def of(network: nn.Module, batch: Batch, at: Moment) -> Tensor:
            gates.tau, gates.scaling = (linear(ends, at.progress) for ends in (self.tau, self.scaling))
            gates.generator = at.generator
            return objective(network, batch, at.generator).mean()

        return of

    @contextmanager
    def _updating(self, model: nn.Module, seed: int) -> Iterator[list[nn.Parameter]]:
        """The weights that move beside the logits; all are what they were when the context is left."""
        if self.update == "lora":
            with lora(model, self.rank, 2 * self.rank, seed) as weights:
                yield weights
            return
        learning = [p for p in model.parameters() if p.requires_grad]
        moving = learning if self.update == "full" else []
        original = [p.detach().clone() for p in moving]
        for parameter in learning:
            parameter.requires_grad_(self.update == "full")
        try:
            yield moving
        finally:
            with torch.no_grad():
                for parameter, value in zip(moving, original, strict=True):
                    parameter.copy_(value)
            for parameter in learning:
                parameter.requires_grad_(True)


def linear(ends: tuple[float, float], progress: float) -> float:
    """A value that goes from one end to the other."""
    return ends[0] + (ends[1] - ends[0]) * progress


def watched(gates: Gates) -> dict[str, Tensor]:
    """What the history of a search shows of its logits."""
    return {"kept_probability": gates.kept_probability(), "confidence": gates.confidence()}


@contextmanager
def _gated(anatomy: Anatomy, gates: Gates, recompute: bool) -> Iterator[GatedNetwork]:
    """The model with switches, in training mode; afterwards as it was."""
    training = anatomy.model.training
    try:
        yield GatedNetwork(anatomy, gates, recompute).train()
    finally:
        ungate(anatomy)
        anatomy.model.train(training)
