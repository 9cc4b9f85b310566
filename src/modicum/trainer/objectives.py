"""The losses of language models and classifiers, and which loss belongs to which model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.errors import UnsupportedModel
from modicum.models.dit import Transformer
from modicum.models.mar import MAR
from modicum.trainer.diffusion_objectives import MaskedTokens, NoisePrediction, VelocityPrediction
from modicum.trainer.objective import Objective, Question
from modicum.trainer.sources import Batch


class NextToken(Objective):
    """Language models: cross entropy of the next token, mean over a window."""

    needs = ("input_ids",)

    def ask(self, batch: Batch, generator: torch.Generator, training: bool = True) -> Question:
        """The windows, int64 `[B, T]`."""
        return {"input_ids": batch["input_ids"]}

    def answer(self, network: nn.Module, question: Question) -> Tensor:
        """Logits that have a next token, `[B, T - 1, V]`."""
        return network(input_ids=question["input_ids"], use_cache=False).logits[:, :-1]

    def loss(self, output: Tensor, question: Question) -> Tensor:
        """Nats per token."""
        return F.cross_entropy(
            output.float().transpose(1, 2), question["input_ids"][:, 1:], reduction="none"
        ).mean(1)

    def divergence(self, output: Tensor, teacher: Tensor, question: Question) -> Tensor:
        """KL(teacher || output), mean over the window."""
        return _divergence(output, teacher).mean(1)


class Classification(Objective):
    """Classifiers of transformers: cross entropy of `labels`; the rest of the batch goes to the model."""

    needs = ("labels",)

    def ask(self, batch: Batch, generator: torch.Generator, training: bool = True) -> Question:
        """The batch itself."""
        return batch

    def answer(self, network: nn.Module, question: Question) -> Tensor:
        """Logits `[B, classes]`."""
        return network(**{name: value for name, value in question.items() if name != "labels"}).logits

    def loss(self, output: Tensor, question: Question) -> Tensor:
        """Nats."""
        return F.cross_entropy(output.float(), question["labels"], reduction="none")

    def divergence(self, output: Tensor, teacher: Tensor, question: Question) -> Tensor:
        """KL(teacher || output)."""
        return _divergence(output, teacher)


def objective_of(model: Any) -> Objective:
    """The loss that a model of this kind is trained with.

    Raises:
        UnsupportedModel: no loss is known for it.
    """
    if isinstance(model, Transformer):
        return (
            NoisePrediction(model.config) if model.config.kind == "dit" else VelocityPrediction(model.config)
        )
    if isinstance(model, MAR):
        return MaskedTokens(model.config)
    kind = type(model).__name__
    if kind.endswith(("ForCausalLM", "LMHeadModel")):
        return NextToken()
    if kind.endswith("Classification"):
        return Classification()
    raise UnsupportedModel(
        f"No training loss is known for {kind}.",
        "Pass an objective (modicum.trainer.Objective) in the context.",
    )


def _divergence(output: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || output) over the last axis."""
    own, aim = output.float().log_softmax(-1), teacher.float().log_softmax(-1)
    return (aim.exp() * (aim - own)).sum(-1)
