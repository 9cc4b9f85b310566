"""What methods share that train a whole model to recover: its data, its schedule, its teacher, its mask.

A pruned model stays pruned: weights that an earlier step promised to be zero are zero after every step of the training,
whether all weights are trained (`modicum.trainer.zeros`) or a low-rank update of them (`modicum.trainer.merged_lora`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from modicum.errors import InvalidSetting, UnsupportedModel, UnusableData
from modicum.method import Context, ModelMethod
from modicum.models import Anatomy
from modicum.models.depth import gate, ungate
from modicum.trainer import (
    Batch,
    Group,
    Loss,
    Moment,
    Objective,
    Settings,
    Trainer,
    held_zeros,
    merged_lora,
    objective_of,
    usual_decay,
)
from modicum.trainer.objective import Question
from modicum.weights.properties import LayerShapes, NMPattern, TiedWeights, ZeroMask


class Recovery(ModelMethod):
    """Trains all weights; a subclass says on which loss. The moving average of the weights is the result."""

    keeps = (ZeroMask, NMPattern, TiedWeights, LayerShapes)

    steps: int = Field(100_000, ge=1, description="training steps")
    batch: int = Field(256, ge=1, description="samples per step, in parts of `accumulate`")
    accumulate: int = Field(1, ge=1, description="forward passes that share a step")
    lr: float = Field(2e-4, gt=0, description="learning rate at the start")
    final_lr: float = Field(1e-4, ge=0, description="learning rate at the end of the cosine")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    average: float | None = Field(
        None, gt=0, lt=1, description="decay of the moving average; 1 - 10 / steps (0.9999 as published)"
    )
    bf16: bool = Field(False, description="train under bfloat16 autocast")
    recompute: bool = Field(False, description="compute activations twice instead of keeping them")
    lora: int | None = Field(
        None,
        ge=1,
        description="train a low-rank update of the blocks' linear layers instead of all weights: its rank, half its "
        "alpha; it is merged in the end",
    )

    @model_validator(mode="after")
    def _possible(self) -> Recovery:
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} is not a multiple of accumulate {self.accumulate}")
        if self.final_lr > self.lr:
            raise ValueError(f"final_lr {self.final_lr} is above lr {self.lr}, where it begins")
        return self

    def samples_read(self) -> int:
        """The samples of all steps."""
        return self.steps * self.batch

    def blocks_kept(self, stacks: Sequence[int]) -> tuple[int, ...]:
        """All: training changes no shape."""
        return tuple(stacks)

    @abstractmethod
    def loss(
        self, anatomy: Anatomy, taps: Sequence[nn.Module], objective: Objective, context: Context
    ) -> Loss:
        """The loss as the training loop calls it.

        Args:
            anatomy: of the model that is trained.
            taps: modules whose outputs are those of its blocks.
            objective: of the model.
            context: with the teacher.
        """

    def transform(self, anatomy: Anatomy, context: Context) -> Anatomy:
        """The same model with trained weights.

        Raises:
            UnusableData: the context holds no training data.
            InvalidSetting: a teacher is needed and missing.
            UnsupportedModel: the teacher does not fit the model.
            NotFinite: ten steps in a row had no finite loss.
        """
        if context.data is None:
            raise UnusableData(f"{self.name} trains and needs data.", "Name a source of data.")
        objective = context.objective or objective_of(anatomy.model)
        seed = int(torch.randint(2**31, (1,), generator=context.generator))
        with _training(anatomy, self.recompute) as taps, self._learning(anatomy, context, seed) as weights:
            trainer = Trainer(
                anatomy.model,
                [Group(weights, self.lr, self.weight_decay)],
                self.loss(anatomy, taps, objective, context),
                context.data.batches(self.batch // self.accumulate, seed),
                self._schedule(seed),
                context.work_directory,
                self._identity(anatomy, context),
                context.device,
                report=context.progress,
            )
            done = trainer.run()
            assert trainer.average is not None
            trainer.average.write(trainer.average.values)
        context.notes[self.name] = {
            "steps": done.steps,
            "loss": done.loss,
            "skipped_steps": done.skipped,
            "history": trainer.history.notes(),
        }
        return anatomy

    @contextmanager
    def _learning(self, anatomy: Anatomy, context: Context, seed: int) -> Iterator[list[nn.Parameter]]:
        """The parameters that are trained, with the promised zeros held."""
        names = {name for name, promises in context.promised.items() if ZeroMask() in promises}
        if self.lora is not None:
            with merged_lora(anatomy, self.lora, 2 * self.lora, seed, names) as weights:
                yield weights
            return
        with held_zeros(layer for layer in anatomy.layers() if layer.name in names):
            yield list(anatomy.model.parameters())

    def _schedule(self, seed: int) -> Settings:
        return Settings(
            steps=self.steps,
            accumulate=self.accumulate,
            schedule="cosine",
            final=self.final_lr / self.lr,
            average=self.average or usual_decay(self.steps),
            bf16=self.bf16,
            seed=seed,
        )

    def _identity(self, anatomy: Anatomy, context: Context) -> dict[str, Any]:
        teacher = context.teacher
        return {
            "method": self.name,
            **self.settings(),
            "parameters": sum(p.numel() for p in anatomy.model.parameters()),
            "teacher": None if teacher is None else sum(p.numel() for p in teacher.parameters()),
        }


def teacher_of(name: str, anatomy: Anatomy, context: Context) -> nn.Module:
    """The teacher in the context, ready to be asked.

    Args:
        name: of the method that needs it.
        anatomy: of the student.
        context: holds it.

    Raises:
        InvalidSetting: there is none.
        UnsupportedModel: its hidden states or its outputs have other sizes than the student's.
    """
    if context.teacher is None:
        raise InvalidSetting(f"{name} needs a teacher.", "Name the original with --teacher.")
    for size in ("hidden_size", "encoder_embed_dim", "decoder_embed_dim", "vocab_size", "input_size"):
        own, other = (_size(model, size) for model in (anatomy.model, context.teacher))
        if own != other:
            raise UnsupportedModel(
                f"The teacher has {size} {other}, the student {own}.",
                "Blocks can be compared where student and teacher have one width: take the model that was pruned.",
            )
    return context.teacher.to(context.device).eval().requires_grad_(False)


def _size(model: nn.Module, name: str) -> Any:
    return getattr(getattr(model, "config", None), name, None)


@torch.no_grad()
def teach(objective: Objective, teacher: nn.Module, question: Question) -> Tensor:
    """The teacher's output; the question is the student's, its dropped labels included."""
    return objective.answer(teacher, question)


def asked(objective: Objective, network: nn.Module, batch: Batch, at: Moment) -> tuple[Question, Tensor]:
    """A question in training mode, and the network's output."""
    question = objective.ask(batch, at.generator, training=True)
    return question, objective.answer(network, question)


@contextmanager
def _training(anatomy: Anatomy, recompute: bool) -> Iterator[list[nn.Module]]:
    """The model in training mode, and the modules that return its blocks' outputs."""
    training = anatomy.model.training
    taps: list[nn.Module] = [block.module for block in anatomy.blocks]
    if recompute:
        taps = list(gate(anatomy, recompute=True))
    anatomy.model.train()
    try:
        yield taps
    finally:
        if recompute:
            ungate(anatomy)
        anatomy.model.train(training)
