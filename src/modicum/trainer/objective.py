"""What a model was trained for, as a loss per sample: noise, the next token, a class.

A method that trains asks for the model's own loss and does not care what the model is. The work is cut in three, so
that a teacher can be asked the same question as its student:

    question = objective.ask(batch, generator, training)      everything random is drawn here
    output   = objective.answer(network, question)            one forward pass; for the teacher as well
    loss     = objective.loss(output, question)               [B], against the data
               objective.divergence(output, teacher, question)   [B], against the teacher
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from modicum.errors import UnusableData
from modicum.trainer.sources import Batch

Question = Mapping[str, Tensor]


class Objective(ABC):
    """A training loss of one kind of model; samples are the first axis of everything."""

    needs: tuple[str, ...]
    """Names of the tensors that a batch holds."""

    state_weight: ClassVar[float] = 1e-2
    """Weight of hidden states beside this loss, where a student is to learn those of its teacher too."""

    @abstractmethod
    def ask(self, batch: Batch, generator: torch.Generator, training: bool = True) -> Question:
        """What the network is shown and what is expected; randomness comes from `generator`.

        Args:
            batch: tensors named in `needs`, on one device, which is the generator's.
            generator: drawn from in the same order whatever the batch holds.
            training: whether regularisation that belongs to the loss (dropped labels) is on.
        """

    @abstractmethod
    def answer(self, network: nn.Module, question: Question) -> Tensor:
        """The network's output, `[B, ...]`."""

    @abstractmethod
    def loss(self, output: Tensor, question: Question) -> Tensor:
        """The model's own loss, float32 `[B]`."""

    @abstractmethod
    def divergence(self, output: Tensor, teacher: Tensor, question: Question) -> Tensor:
        """How far the output is from a teacher's, float32 `[B]`; `teacher` carries no gradient."""

    def __call__(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        """The loss of a batch, float32 `[B]`, in the mode that the network is in."""
        question = self.ask(batch, generator, network.training)
        return self.loss(self.answer(network, question), question)


def check_batch(objective: Objective, batch: Batch) -> None:
    """Refuse data that the loss cannot use.

    Raises:
        UnusableData: names what is missing.
    """
    missing = [name for name in objective.needs if name not in batch]
    if missing:
        raise UnusableData(
            f"The training data holds no {missing[0]!r}; it holds {', '.join(sorted(batch))}.",
            f"{type(objective).__name__} needs {', '.join(objective.needs)}.",
        )
