"""What methods share that hold a student's hidden states against its teacher's: which blocks, and the loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from modicum.distill.recovery import Recovery, asked, teach, teacher_of
from modicum.errors import InvalidSetting
from modicum.method import Context
from modicum.models import Anatomy
from modicum.models.depth import last_of_groups, split
from modicum.trainer import Batch, Loss, Moment, Objective

Pairs = Sequence[tuple[int, int]]


class StateDistillation(Recovery):
    """L = alpha L_KD + (1 - alpha) L_data + beta L_rep, with beta falling to zero epoch by epoch."""

    asks_teacher: ClassVar[bool] = True

    alpha: float = Field(0.9, ge=0, le=1, description="weight of the teacher's output against the data")
    beta: float | None = Field(
        None, ge=0, description="weight of the hidden states at first; by default 1e-2, 2e-4 for SiT"
    )
    epochs: int = Field(
        20, ge=1, description="parts of the training in which beta is constant; zero in the last"
    )
    pairs: tuple[tuple[int, int], ...] | None = Field(
        None,
        description="(student block, teacher block) to hold against each other; from the pruning by default",
    )

    @abstractmethod
    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """How far hidden states `[B, tokens, channels]` are apart, float32 `[B]`."""

    def representation(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The mean distance over the pairs, `[B]`."""
        terms = [self.distance(s, t) for s, t in zip(student, teacher, strict=True)]
        return sum(terms[1:], start=terms[0]) / len(terms)

    def total(self, taught: Tensor, own: Tensor, states: Tensor, beta: float) -> Tensor:
        """The weighed sum of the three losses, each `[B]`."""
        return self.alpha * taught + (1 - self.alpha) * own + beta * states

    def share_at(self, step: int, steps: int) -> float:
        """What is left of beta, 1 - epoch / (epochs - 1); constant if there is one epoch."""
        return 1.0 if self.epochs == 1 else 1 - (step * self.epochs // steps) / (self.epochs - 1)

    def loss(
        self, anatomy: Anatomy, taps: Sequence[nn.Module], objective: Objective, context: Context
    ) -> Loss:
        """Teacher, data and hidden states, weighed."""
        teacher = teacher_of(self.name, anatomy, context)
        whole = Anatomy.of(teacher, anatomy.family)
        blocks, pairs = whole.blocks, self.pairs or pairs_of(anatomy.stacks, whole.stacks, context.notes)
        _check(pairs, len(taps), len(blocks))
        beta = objective.state_weight if self.beta is None else self.beta
        watching = [*(taps[own] for own, _ in pairs), *(blocks[other].module for _, other in pairs)]

        def of(network: nn.Module, batch: Batch, at: Moment) -> Tensor:
            with watched(watching) as states:
                question, output = asked(objective, network, batch, at)
                told = teach(objective, teacher, question)
            apart = self.representation(states[: len(pairs)], states[len(pairs) :])
            taught, own = objective.divergence(output, told, question), objective.loss(output, question)
            return self.total(taught, own, apart, beta * self.share_at(at.step, at.steps)).mean()

        return of


@contextmanager
def watched(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """While the context lasts, what each of `modules` returns is kept: hidden states, with their gradient."""
    states = [torch.empty(0)] * len(modules)

    def keep(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            states[index] = output[0] if isinstance(output, tuple) else output

        return hook

    with ExitStack() as stack:
        for index, module in enumerate(modules):
            stack.callback(module.register_forward_hook(keep(index)).remove)
        yield states


def pairs_of(student: Sequence[int], teacher: Sequence[int], notes: Mapping[str, Mapping[str, Any]]) -> Pairs:
    """Which blocks to hold against each other: the last kept block of a group, and the last block of that group.

    Args:
        student: blocks of each of its stacks.
        teacher: blocks of each of its stacks.
        notes: of the steps that made the student. Where its pruning knew no groups, a kept block and the removed ones
            behind it are one; where there was no pruning, the stacks are cut evenly.
    """
    for note in reversed(list(notes.values())):
        kept = note.get("kept_blocks")
        if kept is None or (len(kept), note.get("of_blocks")) != (sum(student), sum(teacher)):
            continue
        if "groups" in note:
            return last_of_groups(kept, tuple((keep, of) for keep, of in note["groups"]))
        return _counted(
            student, teacher, [_runs(*each) for each in zip(split(kept, teacher), teacher, strict=True)]
        )
    return _counted(student, teacher, [_evenly(*each) for each in zip(student, teacher, strict=True)])


def _runs(kept: Sequence[int], depth: int) -> Pairs:
    """Every kept block of a stack, and the last of the removed ones behind it."""
    return [(i, after - 1) for i, (_, after) in enumerate(pairwise([*kept, depth]))]


def _evenly(student: int, teacher: int) -> Pairs:
    return [(i, (i + 1) * teacher // student - 1) for i in range(student)]


def _counted(student: Sequence[int], teacher: Sequence[int], pairs: Sequence[Pairs]) -> Pairs:
    """Pairs within each stack, counted through all stacks."""
    starts = zip(accumulate(student, initial=0), accumulate(teacher, initial=0), strict=True)
    return [
        (first + own, second + other)
        for (first, second), part in zip(starts, pairs, strict=False)
        for own, other in part
    ]


def _check(pairs: Pairs, student: int, teacher: int) -> None:
    for own, other in pairs:
        if not (0 <= own < student and 0 <= other < teacher):
            raise InvalidSetting(
                f"The pair {(own, other)} does not exist: the student has {student} blocks, the teacher {teacher}.",
                "Give (student block, teacher block), counted from 0.",
            )
