"""What a cache policy may ask about the queries of the map that attention has just seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Queries:
    """Access to the queries of one layer at one map; nothing is computed until a policy asks.

    Attention logits are `used() @ keys^T * scale`. Two views exist because published policies differ: some
    score with the queries that attention used, ScaleKV's released code with the bare projection `W_q x`.

    Attributes:
        inputs: what the projection read, `[rows, tokens, channels]`.
        project: `W_q` alone: `[rows, p, channels] -> [rows, heads, p, head_dim]`; no bias, no norm, no rotation.
        final: queries as attention used them (bias, norm, learned scale, rotation),
            `[rows, heads, tokens, head_dim]`.
        scale: softmax scale of the attention.
    """

    inputs: Tensor
    project: Callable[[Tensor], Tensor]
    final: Tensor
    scale: float

    @property
    def tokens(self) -> int:
        """Tokens of the map."""
        return self.inputs.shape[1]

    def raw(self, positions: Tensor | None = None) -> Tensor:
        """`W_q x` of some tokens of the map, `[rows, heads, p, head_dim]`; only these tokens are projected.

        Args:
            positions: int64 `[p]`, row-major in the map; all tokens by default.
        """
        return self.project(self.inputs if positions is None else self.inputs[:, positions])

    def used(self, positions: Tensor | None = None) -> Tensor:
        """The queries of attention at some tokens of the map, `[rows, heads, p, head_dim]`."""
        return self.final if positions is None else self.final[:, :, positions]
