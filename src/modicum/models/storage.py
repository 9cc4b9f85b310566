"""Where a weight matrix lives and how to write it: in a linear layer, a convolution, an expert.

Every home offers the same matrix view [out, in]. A callable home (Linear, Conv1D) can be exchanged for a
compressed module; in the others (Conv2d, one slice of a fused expert tensor) the surrounding code reads the
tensor itself, so a compressed form is decoded and its values are written through.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from modicum.errors import UnsupportedModel
from modicum.weights.base import WeightForm

Kind = Literal["linear", "conv1d", "conv2d", "expert"]


class Storage(ABC):
    """One weight matrix inside the parameter of `module`."""

    kind: ClassVar[Kind]
    swappable: ClassVar[bool] = False

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @property
    def tensor(self) -> Tensor:
        """The parameter that holds the matrix."""
        return self.module.weight  # type: ignore[return-value]

    @abstractmethod
    def matrix(self, values: Tensor) -> Tensor:
        """The part of `values`, which has the shape of the parameter, that belongs to this matrix: [out, in]."""

    @property
    def weight(self) -> Tensor:
        """The matrix, [out, in]: a view of the parameter, so writing into it writes the model."""
        return self.matrix(self.tensor)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows, columns = self.weight.shape
        return rows, columns

    @property
    def bias(self) -> Tensor | None:
        """[out], or None."""
        return getattr(self.module, "bias", None)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters involved, relative to the module."""
        return ("weight",) if self.bias is None else ("weight", "bias")

    @torch.no_grad()
    def write(self, weight: Tensor, bias: Tensor | None) -> None:
        """Copy `weight` [out, in] and, unless None, `bias` [out] into the model; cast to its dtype."""
        self.weight.copy_(weight)
        if bias is not None and self.bias is not None:
            self.bias.copy_(bias)

    def resize(self, weight: Tensor, bias: Tensor | None) -> None:
        """Let a matrix [out, in] of another size, and its bias [out], take the place of what is there.

        Raises:
            UnsupportedModel: the code around it relies on its size.
        """
        raise UnsupportedModel(f"A {type(self.module).__name__} cannot change its size.", "Leave it whole.")

    def _renew(self, weight: Tensor, bias: Tensor | None) -> None:
        wanted = self.weight.requires_grad
        self.module.weight = nn.Parameter(weight.contiguous(), wanted)
        if bias is not None:
            self.module.bias = nn.Parameter(bias.to(weight.dtype), wanted)


class LinearStorage(Storage):
    """An nn.Linear: the parameter is the matrix."""

    kind = "linear"
    swappable = True

    def matrix(self, values: Tensor) -> Tensor:
        return values

    def resize(self, weight: Tensor, bias: Tensor | None) -> None:
        self._renew(weight, bias)
        self.module.out_features, self.module.in_features = weight.shape  # type: ignore[assignment]


class Conv1DStorage(Storage):
    """The transposed linear layer of GPT-2: the parameter is [in, out]."""

    kind = "conv1d"
    swappable = True

    def matrix(self, values: Tensor) -> Tensor:
        return values.t()

    def resize(self, weight: Tensor, bias: Tensor | None) -> None:
        self._renew(weight.t(), bias)
        self.module.nf, self.module.nx = weight.shape  # type: ignore[assignment]


class Conv2dStorage(Storage):
    """An nn.Conv2d: [out, in / groups, kh, kw] read as [out, in / groups * kh * kw]."""

    kind = "conv2d"

    def matrix(self, values: Tensor) -> Tensor:
        return values.flatten(1)

    @torch.no_grad()
    def write(self, weight: Tensor, bias: Tensor | None) -> None:
        # In channels-last memory the matrix is a copy, not a view; write in the shape of the parameter.
        parameter: Tensor = self.module.weight  # type: ignore[assignment]
        parameter.copy_(weight.reshape(parameter.shape))
        if bias is not None and self.bias is not None:
            self.bias.copy_(bias)


class ExpertStorage(Storage):
    """Rows `rows` of expert `expert` in a fused [experts, rows, in] parameter."""

    kind = "expert"

    def __init__(self, module: nn.Module, parameter: str, expert: int, rows: slice) -> None:
        super().__init__(module)
        self.parameter, self.expert, self.rows = parameter, expert, rows

    @property
    def tensor(self) -> Tensor:
        return getattr(self.module, self.parameter)

    def matrix(self, values: Tensor) -> Tensor:
        return values[self.expert, self.rows]

    @property
    def bias(self) -> Tensor | None:
        return None

    @property
    def parameters(self) -> tuple[str, ...]:
        return (self.parameter,)


class FormStorage(Storage):
    """A weight form that was in the model from the start, because a compressed checkpoint was loaded."""

    kind = "linear"
    swappable = True

    @property
    def tensor(self) -> Tensor:
        kind = type(self.module).__name__
        raise UnsupportedModel(f"A {kind} has no weights to take gradients of.", "Begin with the original.")

    def matrix(self, values: Tensor) -> Tensor:
        return values

    @property
    def weight(self) -> Tensor:
        return self.module.to_dense()  # type: ignore[operator]

    @property
    def shape(self) -> tuple[int, int]:
        return self.module.out_features, self.module.in_features  # type: ignore[return-value]

    def write(self, weight: Tensor, bias: Tensor | None) -> None:
        kind = type(self.module).__name__
        raise UnsupportedModel(f"Values cannot be written into a {kind}.", "Replace the layer by a new form.")


def storage_of(module: nn.Module) -> Storage | None:
    """The storage of a module that is one weight matrix, or None if it is not of a known kind."""
    if isinstance(module, WeightForm):
        return FormStorage(module)
    if isinstance(module, nn.Linear):
        return LinearStorage(module)
    if isinstance(module, Conv1D):
        return Conv1DStorage(module)
    if isinstance(module, nn.Conv2d):
        return Conv2dStorage(module)
    return None
