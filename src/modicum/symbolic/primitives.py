"""The operations that expressions are made of, each with its signature, its guard and what simplifies around it.

A guard keeps an operation defined everywhere: a quotient by almost zero is one by 1e-9, a logarithm is that of a
magnitude and a little more, an exponential stops growing at exp(88). No operation writes into its arguments.

Values are tensors of float32 (or float64), and scalars: float64 tensors without dimensions. Lists of tensors, one per
layer, go through every operation layer by layer; `layer_sum` and `layer_mean` end in a scalar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

EPS = 1e-9
LOG_EPS = 1e-3
EXP_LIMIT = 88.0  # published trees stop at 100, of which the exponential is no float32


class Type(IntEnum):
    """What a value is; whatever takes one kind takes a wider one as well."""

    SCALAR = 0
    TENSOR = 1
    LAYERS = 2


@dataclass(frozen=True)
class Primitive:
    """One operation.

    Attributes:
        name: as it is written.
        compute: from tensors to a new tensor.
        arity: number of arguments.
        takes: the narrowest type of an argument.
        reduces: whether a tensor becomes a scalar, or, if layers are taken, a list of layers one scalar.
        guard: what keeps it defined everywhere, in words.
        infix: how it is written between two arguments, if it is.
        commutative: f(x, y) = f(y, x).
        idempotent: f(f(x)) = f(x).
        even: f(-x) = f(x).
        positive: f(x) >= 0.
        inverse_of: the operation that it undoes on positive numbers.
    """

    name: str
    compute: Callable[..., Tensor]
    arity: int = 1
    takes: Type = Type.SCALAR
    reduces: bool = False
    guard: str = ""
    infix: str = ""
    commutative: bool = False
    idempotent: bool = False
    even: bool = False
    positive: bool = False
    inverse_of: str = ""

    def gives(self, arguments: Sequence[Type]) -> Type | None:
        """The type of the result, or None if the arguments do not fit."""
        if len(arguments) != self.arity or min(arguments) < self.takes:
            return None
        widest = max(arguments)
        if self.takes is Type.LAYERS:
            return Type.SCALAR
        return Type.SCALAR if self.reduces and widest is Type.TENSOR else widest


def away_from_zero(values: Tensor) -> Tensor:
    """The same values, but those nearer to zero than `EPS` moved out to it, zero upwards."""
    return torch.where(values.abs() < EPS, torch.where(values < 0, -EPS, EPS), values)


def frobenius(values: Tensor) -> Tensor:
    """Root of the sum of squares, a float64 scalar; taken relative to the largest value: no square overflows."""
    largest = values.abs().max().double().clamp_min(1e-30)
    return (values / largest).square().sum(dtype=torch.float64).sqrt() * largest


def _quotient_by_norm(x: Tensor, y: Tensor) -> Tensor:
    x, y = torch.broadcast_tensors(x, y)
    return x / (away_from_zero(frobenius(y)) if y.dim() else away_from_zero(y.abs()))


def _min_max(x: Tensor) -> Tensor:
    low, high = torch.aminmax(x)
    return (x - low) / (high - low).clamp_min(1e-30)


def _deviation(x: Tensor) -> Tensor:
    if x.numel() < 2:
        return torch.zeros((), dtype=torch.float64, device=x.device)
    return frobenius(x - x.mean(dtype=torch.float64)) / (x.numel() - 1) ** 0.5


def _z_score(x: Tensor) -> Tensor:
    return (x - x.mean(dtype=torch.float64)) / away_from_zero(_deviation(x))


def _sum_of(dim: int) -> Callable[[Tensor], Tensor]:
    def compute(x: Tensor) -> Tensor:
        return torch.atleast_2d(x).sum(dim, keepdim=True)

    return compute


def _reduction(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: function(x).double()


ELEMENTWISE = (
    Primitive("add", torch.add, 2, infix="+", commutative=True),
    Primitive("sub", torch.sub, 2, infix="-"),
    Primitive("mul", torch.mul, 2, infix="*", commutative=True),
    Primitive("div", lambda x, y: x / away_from_zero(y), 2, guard="|y| >= 1e-9", infix="/"),
    Primitive("neg", torch.neg, inverse_of="neg"),
    Primitive("abs", torch.abs, idempotent=True, even=True, positive=True),
    Primitive("sqr", torch.square, even=True, positive=True, inverse_of="sqrt"),
    Primitive("sqrt", lambda x: x.abs().sqrt(), guard="of |x|", even=True, positive=True, inverse_of="sqr"),
    Primitive("log", lambda x: (x.abs() + LOG_EPS).log(), guard="of |x| + 1e-3", even=True, inverse_of="exp"),
    Primitive(
        "exp", lambda x: x.clamp(max=EXP_LIMIT).exp(), guard="of min(x, 88)", positive=True, inverse_of="log"
    ),
    Primitive("tanh", torch.tanh),
    Primitive("relu", torch.relu, idempotent=True, positive=True),
    Primitive("sigmoid", torch.sigmoid, positive=True),
    Primitive("invert", lambda x: 1 / away_from_zero(x), guard="|x| >= 1e-9"),
    Primitive("skip", torch.clone, idempotent=True),
)
"""One number from one number, or from two at the same place."""

WHOLE = (
    Primitive("mms", _min_max, takes=Type.TENSOR, guard="0 for a constant", idempotent=True, positive=True),
    Primitive("zsn", _z_score, takes=Type.TENSOR, guard="deviation >= 1e-9"),
    Primitive("normdiv", _quotient_by_norm, 2, guard="norm >= 1e-9"),
    Primitive("rowsum", _sum_of(-1), takes=Type.TENSOR),
    Primitive("colsum", _sum_of(-2), takes=Type.TENSOR),
)
"""A tensor from whole tensors: scaled to [0, 1], standardised, x over the Frobenius norm of y, sums that broadcast."""

REDUCING = (
    Primitive("min", _reduction(torch.min), takes=Type.TENSOR, reduces=True),
    Primitive("max", _reduction(torch.max), takes=Type.TENSOR, reduces=True),
    Primitive("mean", lambda x: x.mean(dtype=torch.float64), takes=Type.TENSOR, reduces=True),
    Primitive("std", _deviation, takes=Type.TENSOR, reduces=True, positive=True),
    Primitive("sum", lambda x: x.sum(dtype=torch.float64), takes=Type.TENSOR, reduces=True),
    Primitive("fro", frobenius, takes=Type.TENSOR, reduces=True, positive=True),
)
"""A scalar from a tensor."""

OVER_LAYERS = (
    Primitive("layer_sum", lambda x: x.sum(), takes=Type.LAYERS, reduces=True),
    Primitive("layer_mean", lambda x: x.mean(), takes=Type.LAYERS, reduces=True),
)
"""A scalar from a list of layers, each of which counts with the mean of its entries."""

PRIMITIVES = {p.name: p for p in (*ELEMENTWISE, *WHOLE, *REDUCING, *OVER_LAYERS)}
"""All operations by name."""
