"""The end of a model alone: what its head makes of given hidden states.

The model's own code runs, with every block replaced by one that returns the given states. So a loss behind the last
block, and its gradient there, can be had while no block is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from modicum.models.anatomy import Anatomy


def run_tail(anatomy: Anatomy, inputs: Mapping[str, Any], states: Tensor) -> Any:
    """The model's output for `inputs`, as if its last block had returned `states`; gradients flow if enabled.

    Args:
        anatomy: the model; what lies outside the blocks must be in memory.
        inputs: keyword arguments of the model.
        states: [batch, tokens, features].
    """
    with _given(anatomy, states):
        return anatomy.model(**inputs)


class _Given(nn.Module):
    """Stands in for a block and returns the same states whatever comes."""

    def __init__(self, block: nn.Module, output: Any) -> None:
        super().__init__()
        # In a tuple, so that the block's parameters do not become this module's.
        self._block, self._output = (block,), output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._output

    def __getattr__(self, name: str) -> Any:
        # Some models ask a block about itself before calling it.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_block"][0], name)


@contextmanager
def _given(anatomy: Anatomy, states: Tensor) -> Iterator[None]:
    size = anatomy.family.tuple_output
    output: Any = (states, *[None] * (size - 1)) if size else states
    try:
        for block in anatomy.blocks:
            anatomy.model.set_submodule(block.name, _Given(block.module, output))
        yield
    finally:
        for block in anatomy.blocks:
            anatomy.model.set_submodule(block.name, block.module)
