"""What methods share that make blocks narrower: the budget, the data, the cut."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from modicum.allocate.width import parameters
from modicum.errors import UnusableData
from modicum.method import Context, ModelMethod
from modicum.models import Anatomy
from modicum.models.surgery import Cuttable, Kind, cut, cuttable
from modicum.trainer.objective import Objective, Question
from modicum.trainer.objectives import objective_of
from modicum.trainer.questions import questions

KINDS: dict[str, tuple[Kind, ...]] = {
    "both": ("heads", "neurons"),
    "heads": ("heads",),
    "neurons": ("neurons",),
}


class WidthMethod(ModelMethod):
    """Removes attention heads (a key-value head with its query heads) and neurons; the result is a smaller model."""

    ratio: float = Field(
        0.2, ge=0, lt=1, description="fraction of the parameters of all blocks' heads and neurons that goes"
    )
    structures: Literal["both", "heads", "neurons"] = Field("both", description="what may go")
    samples: int = Field(128, ge=1, description="calibration samples")
    length: int = Field(128, ge=2, description="tokens of each calibration window")
    batch: int = Field(8, ge=1, description="samples per forward pass")

    def samples_read(self) -> int:
        """The calibration samples."""
        return self.samples

    def units(self, anatomy: Anatomy) -> list[Cuttable]:
        """What may be cut."""
        return cuttable(anatomy, KINDS[self.structures])

    def budget(self, units: list[Cuttable]) -> float:
        """Parameters that go."""
        return self.ratio * parameters(units)

    def ask(
        self, anatomy: Anatomy, context: Context, samples: int | None = None, batch: int | None = None
    ) -> tuple[Objective, list[Question]]:
        """The model's own objective, and the questions of this calibration.

        Raises:
            UnusableData: the context holds no data.
        """
        if context.data is None:
            raise UnusableData(f"{self.name} needs calibration data.", "Name a source of data.")
        objective = context.objective or objective_of(anatomy.model)
        seed = int(torch.randint(2**31, (1,), generator=context.generator))
        count, size = samples or self.samples, batch or self.batch
        asked = questions(objective, context.data, count, size, seed, context.device)
        return objective, [_shortened(question, self.length) for question in asked]

    @abstractmethod
    def choose(
        self, anatomy: Anatomy, units: list[Cuttable], context: Context
    ) -> tuple[Mapping[Cuttable, Tensor], dict[str, Any]]:
        """What stays of `units` (ascending int64 indices), and what is worth noting.

        Weights may be changed so that they make up for what goes; shapes are cut afterwards.
        """

    def transform(self, anatomy: Anatomy, context: Context) -> Anatomy:
        """The narrower model, in place; what was cut goes into the notes.

        Raises:
            UnusableData: the context holds no data.
            InvalidSetting: more is to go than the blocks in question have.
            UnsupportedModel: there is nothing to cut, or it is compressed already.
        """
        before = _size(anatomy)
        kept, notes = self.choose(anatomy, self.units(anatomy), context)
        narrower = cut(anatomy, {unit: groups for unit, groups in kept.items() if len(groups) < unit.count})
        context.notes[self.name] = {
            "kept": {unit.name: [len(groups), unit.count] for unit, groups in kept.items()},
            "parameters": [_size(narrower), before],
            **notes,
        }
        return narrower


def _size(anatomy: Anatomy) -> int:
    return sum(parameter.numel() for parameter in anatomy.model.parameters())


def inputs_of(question: Question) -> dict[str, Tensor]:
    """What of a question the model is shown."""
    return {name: value for name, value in question.items() if name != "labels"}


def _shortened(question: Question, length: int) -> Question:
    return {name: value[:, :length] if name == "input_ids" else value for name, value in question.items()}
