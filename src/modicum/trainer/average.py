"""A moving average of the weights while they are trained: a <- decay a + (1 - decay) w."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Averages of the parameters that are trained; all others would equal themselves.

    Args:
        parameters: name and parameter; kept by reference.
        decay: share of the old average that survives a step.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        self.parameters = dict(parameters)
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights in."""
        current = [p.detach() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.values.values()), current, 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """A context in which the model holds the averages; leaving it brings the weights back."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.write(self.values)
        try:
            yield
        finally:
            self.write(own)

    @torch.no_grad()
    def write(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into the parameters, by name."""
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])


def usual_decay(steps: int) -> float:
    """The decay whose average reaches over the last tenth of a training: 0.999 at 10,000 steps, 0.99 at 1000."""
    return max(1 - 10 / steps, 0.5)
