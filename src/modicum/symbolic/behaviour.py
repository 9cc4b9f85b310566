"""What an expression does, told by the order in which it ranks a fixed example.

Two scores that rank alike choose alike: W and 2 W, |W| and W^2. For a search they are duplicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256

import torch
from torch import Tensor

from modicum.symbolic.evaluate import Value, evaluate
from modicum.symbolic.expression import Node

DIGITS = 10


def behaviour(node: Node, fixture: Mapping[str, Tensor | Sequence[Tensor] | float]) -> str | None:
    """A hash that expressions have in common if they rank all entries of the fixture alike; None if invalid.

    Args:
        node: the expression.
        fixture: small inputs; they are widened to float64, so that rounding does not decide.
    """
    value = evaluate(node, {name: _wide(given) for name, given in fixture.items()})
    return None if value is None else sha256(_ranks(value).numpy().tobytes()).hexdigest()


def _ranks(value: Value) -> Tensor:
    """Dense ranks of all entries, int64 [n]; what agrees in ten digits is equal."""
    parts = value if isinstance(value, tuple) else (value,)
    flat = torch.cat([part.reshape(-1).double() for part in parts]).cpu()
    unit = 10.0 ** (flat.abs().clamp_min(1e-300).log10().floor() - DIGITS + 1)
    rounded = torch.where(flat == 0, flat, (flat / unit).round() * unit)
    return torch.unique(rounded, return_inverse=True)[1]


def _wide(given: Tensor | Sequence[Tensor] | float) -> Tensor | Sequence[Tensor] | float:
    if isinstance(given, Tensor):
        return given.double()
    return given if isinstance(given, float | int) else [one.double() for one in given]
