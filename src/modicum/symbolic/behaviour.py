"""What an expression does, told by the order in which it ranks a fixed example.

Two scores that rank alike choose alike: W and 2 W, |W| and W^2. For a search they are duplicates. Where only entries
of one row compete, W and rowsum(|W|) W are as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256

import torch
from torch import Tensor

from modicum.symbolic.evaluate import evaluate
from modicum.symbolic.expression import Node

DIGITS = 10


def behaviour(
    node: Node,
    fixture: Mapping[str, Tensor | Sequence[Tensor] | float],
    rows: tuple[int, int] | None = None,
) -> str | None:
    """A hash that expressions have in common if they rank all entries of the fixture alike; None if invalid.

    Args:
        node: the expression.
        fixture: small inputs; they are widened to float64, so that rounding does not decide.
        rows: shape of a value of which only entries of one row are compared; the value spreads to it.
    """
    value = evaluate(node, {name: _wide(given) for name, given in fixture.items()})
    if value is None:
        return None
    parts = value if isinstance(value, tuple) else (value,)
    if rows is not None:
        ranks = _ranks(_rounded(parts[0].double().expand(rows)))
    else:
        ranks = _ranks(_rounded(torch.cat([part.reshape(-1).double() for part in parts])[None]))
    return sha256(ranks.cpu().numpy().tobytes()).hexdigest()


def _rounded(values: Tensor) -> Tensor:
    """What agrees in ten digits is equal."""
    unit = 10.0 ** (values.abs().clamp_min(1e-300).log10().floor() - DIGITS + 1)
    return torch.where(values == 0, values, (values / unit).round() * unit)


def _ranks(values: Tensor) -> Tensor:
    """Dense ranks within every row, int64 [rows, n]; equal values have one rank."""
    ordered, places = values.sort(dim=1)
    steps = (ordered.diff(dim=1) > 0).cumsum(1)
    return torch.zeros_like(places).scatter(1, places[:, 1:], steps)


def _wide(given: Tensor | Sequence[Tensor] | float) -> Tensor | Sequence[Tensor] | float:
    if isinstance(given, Tensor):
        return given.double()
    return given if isinstance(given, float | int) else [one.double() for one in given]
