"""DepGraph: cut the weakest groups of coupled channels, in any network whose graph can be followed.

A channel that a shortcut, a concatenation or a depthwise convolution ties to others can only leave together with them.
`modicum.models.channels` finds what hangs together; here every such unit is scored by the norm of all weights that
belong to it, and the weakest are really removed.

    I_k = mean over the layers of the group of  sum |w|^p  over the weights of channel k, divided by the mean over k

Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023, arXiv 2301.12900. As in the published code, biases do
not count. Sparse training before the cut, which the paper's best numbers use, is left to training methods.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from modicum.errors import InvalidSetting, UnsupportedModel
from modicum.method import Context, ModelMethod, Paper
from modicum.models import Anatomy
from modicum.models.channels import Channels, couple, cut

_COUNTED = ("weight",)  # of norms the gain


class DepGraph(ModelMethod):
    """Remove the channels whose coupled weights are smallest, wherever they are tied together.

    Every unit of coupled channels scores mean over its layers of sum |w|^p, relative to its group; each group (or all
    of them together) loses current - int(initial (1 - ratio)) units.
    """

    paper: ClassVar[Paper] = Paper("DepGraph: Towards Any Structural Pruning", "CVPR 2023", "2301.12900")

    ratio: float = Field(0.5, ge=0, lt=1, description="share of the channels of a group that goes")
    scope: Literal["group", "global"] = Field(
        "group", description="compare channels within a group of coupled layers, or all with all"
    )
    norm: float = Field(2.0, gt=0, description="p of the norm")
    steps: int = Field(1, ge=1, description="score and cut in so many steps")
    round_to: int = Field(1, ge=1, description="what is left of a group is a multiple of this")
    most: float = Field(1.0, gt=0, le=1, description="at most this share of any group goes")

    def transform(self, anatomy: Anatomy, context: Context) -> Anatomy:
        """The narrower model, in place.

        Raises:
            UnsupportedModel: the model brings no example input, or its channels cannot be followed.
            InvalidSetting: a group is narrower than `round_to`.
        """
        model = anatomy.model
        example = _example(model)
        before = [len(group) for group in couple(model, example).groups]
        for step in range(1, self.steps + 1):
            channels = couple(model, example)
            self._check(channels)
            left = 1 - self.ratio * step / self.steps
            cut(model, channels, self.removed(channels, importance(model, channels, self.norm), before, left))
        after = [len(group) for group in couple(model, example).groups]
        context.notes[self.name] = {"channels": before, "kept": after}
        return Anatomy.of(model, anatomy.family)

    def removed(
        self, channels: Channels, scores: NDArray[np.float64], before: list[int], left: float
    ) -> NDArray[np.bool_]:
        """Which channels go.

        Args:
            channels: of the model as it is.
            scores: one per channel, float64 [channels].
            before: width of every group at the beginning.
            left: share of that which is to be left.
        """
        gone = np.zeros(len(channels), dtype=bool)
        for group, count in zip(channels.groups, self._counts(channels, scores, before, left), strict=True):
            gone[group[np.argsort(scores[group], kind="stable")[:count]]] = True
        for slot in channels.slots:
            if (
                slot.produces and gone[slot.channels].all()
            ):  # a layer that makes few channels of a large group
                gone[slot.channels[scores[slot.channels].argmax()]] = False
        return gone

    def _counts(
        self, channels: Channels, scores: NDArray[np.float64], before: list[int], left: float
    ) -> list[int]:
        """How many channels every group loses."""
        groups = channels.groups
        wanted = [max(len(g) - _int(size * left), 0) for g, size in zip(groups, before, strict=True)]
        if self.scope == "global":
            free = np.concatenate(groups)
            lowest = free[
                np.argsort(scores[free], kind="stable")[: max(len(free) - _int(sum(before) * left), 0)]
            ]
            wanted = [int(np.isin(group, lowest).sum()) for group in groups]
        return [
            self._rounded(len(group), size, count)
            for group, size, count in zip(groups, before, wanted, strict=True)
        ]

    def _rounded(self, width: int, initial: int, count: int) -> int:
        """A count that leaves a multiple of `round_to`, at least one channel, and no less than `most` allows."""
        floor = max(1, initial - int(initial * self.most))
        keep = max(width - count, floor)
        return width - max(keep // self.round_to * self.round_to, self.round_to)

    def _check(self, channels: Channels) -> None:
        narrow = min(map(len, channels.groups), default=self.round_to)
        if narrow < self.round_to:
            raise InvalidSetting(
                f"A group has {narrow} channels, which cannot be rounded to {self.round_to}.",
                "Lower round_to.",
            )


def importance(model: nn.Module, channels: Channels, norm: float) -> NDArray[np.float64]:
    """The score of every channel, relative to its group, float64 [channels]."""
    total, layers = np.zeros(len(channels)), np.zeros(len(channels))
    for slot in channels.slots:
        if slot.tensor.rpartition(".")[2] in _COUNTED:
            powers = _powers(model.get_parameter(slot.tensor).detach(), slot.dim, norm)
            held = np.bincount(slot.channels, minlength=len(channels))
            total += np.bincount(slot.channels, powers, minlength=len(channels))
            layers += held > 0
    scores = total / np.maximum(layers, 1)
    for group in channels.groups:
        scores[group] /= scores[group].mean() + np.finfo(np.float64).tiny
    return scores


def _powers(weight: Tensor, dim: int, norm: float) -> NDArray[np.float64]:
    """sum |w|^p over all axes but one."""
    flat = weight.movedim(dim, 0).flatten(1) if weight.dim() > 1 else weight[:, None]
    powers: NDArray[np.float64] = flat.double().abs().pow(norm).sum(1).cpu().numpy()
    return powers


def _int(value: float) -> int:
    """int() of a product that may lie a rounding error below a whole number."""
    return int(value + 1e-9)


def _example(model: Any) -> dict[str, Tensor]:
    example = getattr(model, "dummy_inputs", None)
    if not isinstance(example, dict) or not all(
        isinstance(value, torch.Tensor) for value in example.values()
    ):
        raise UnsupportedModel(
            f"{type(model).__name__} brings no example of its inputs.",
            "Give it a property `dummy_inputs`: a dictionary of tensors by argument name.",
        )
    return example
