"""What methods share that choose once which blocks stay, without training the choice."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from modicum.errors import InvalidSetting, UnusableData
from modicum.method import Context, ModelMethod
from modicum.models import Anatomy
from modicum.models.depth import keep_blocks
from modicum.trainer.objective import Objective, Question
from modicum.trainer.objectives import objective_of
from modicum.trainer.questions import questions


class DepthMethod(ModelMethod):
    """Removes whole blocks; a subclass says which stay."""

    @abstractmethod
    def choose(self, anatomy: Anatomy, context: Context) -> tuple[Sequence[int], dict[str, Any]]:
        """Ascending indices of the blocks that stay, and what is worth noting."""

    def transform(self, anatomy: Anatomy, context: Context) -> Anatomy:
        """The model with the chosen blocks alone, in place; weights are untouched.

        Raises:
            InvalidSetting: no such choice of blocks.
            UnusableData: the choice needs data and the context holds none.
        """
        kept, notes = self.choose(anatomy, context)
        context.notes[self.name] = {
            "kept_blocks": list(kept),
            "of_blocks": len(anatomy.blocks),
            **notes,
        }
        return keep_blocks(anatomy, kept)


class ScoredDepth(DepthMethod):
    """Chooses by what calibration says of the blocks."""

    keep: int | None = Field(None, ge=1, description="blocks that stay; half of them by default")
    samples: int = Field(256, ge=1, description="calibration samples")
    batch: int = Field(32, ge=1, description="samples per forward pass")

    def samples_read(self) -> int:
        """The calibration samples."""
        return self.samples

    def blocks_kept(self, stacks: Sequence[int]) -> tuple[int, ...] | None:
        """All of them from a single stack; calibration decides between several."""
        count = self.count(sum(stacks))
        return (count,) if len(stacks) == 1 else None

    def count(self, depth: int) -> int:
        """How many of `depth` blocks stay.

        Raises:
            InvalidSetting: more than there are.
        """
        keep = self.keep if self.keep is not None else max(depth // 2, 1)
        if keep > depth:
            raise InvalidSetting(
                f"{self.name} is to keep {keep} blocks of a model that has {depth}.", "Lower keep."
            )
        return keep

    def ask(self, anatomy: Anatomy, context: Context) -> tuple[Objective, list[Question]]:
        """The model's own objective, and the questions of this calibration.

        Raises:
            UnusableData: the context holds no data.
        """
        if context.data is None:
            raise UnusableData(f"{self.name} needs calibration data.", "Name a source of data.")
        objective = context.objective or objective_of(anatomy.model)
        seed = int(torch.randint(2**31, (1,), generator=context.generator))
        asked = questions(objective, context.data, self.samples, self.batch, seed, context.device)
        return objective, list(asked)


def highest(scores: Tensor, count: int) -> list[int]:
    """Ascending indices of the `count` largest of `scores` `[blocks]`; of equal ones the later stay."""
    order = scores.argsort(stable=True)
    return sorted(order[len(scores) - count :].tolist())
