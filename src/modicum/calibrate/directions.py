"""How much each weight has to do with where the output of a layer points.

A layer gives a = W x for every token. Removing W_ij changes a_i by W_ij x_j; what matters downstream is less how much
shorter a becomes than how far it turns. Two matrices [out, in] measure that, per unit of weight, over all tokens t:

    alignment_ij = sum_t |a_ti| |x_tj| / ||a_t||^2
    turning_ij   = sqrt( sum_t x_tj^2 (1 - a_ti^2 / ||a_t||^2) / ||a_t||^2 )

The first comes from a first-order expansion of the cosine between a with and without the weight. The exact expansion
has no first-order term; half the square of (W_ij turning_ij) is its leading term. Each costs a product as large as that
of the layer itself. Tokens without an output (||a|| <= 1e-8) point nowhere and are left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modicum.calibrate.statistics import ROWS

EPS = 1e-8


class Directions:
    """Running sums of one layer.

    Args:
        wanted: of "alignment" and "turning".
    """

    def __init__(self, wanted: frozenset[str]) -> None:
        self.sums: dict[str, Tensor | None] = dict.fromkeys(sorted(wanted))

    def update(self, inputs: Tensor, weight: Tensor) -> None:
        """Add a batch of inputs.

        Args:
            inputs: [..., in].
            weight: [out, in], as the layer has it now.
        """
        weight = weight.float()
        for x in inputs.reshape(-1, inputs.shape[-1]).split(ROWS):
            self._add(x.float(), weight)

    def _add(self, x: Tensor, weight: Tensor) -> None:
        a = x @ weight.T  # [n, out]
        length = a.norm(dim=1, keepdim=True)
        inverse = torch.where(length > EPS, 1 / length, 0.0)
        a, x = (a * inverse).abs_(), (x * inverse).abs_()
        if "alignment" in self.sums:
            self._accumulate("alignment", a, x)
        if "turning" in self.sums:
            self._accumulate("turning", (1 - a.square()).clamp_min_(0), x.square())

    def _accumulate(self, kind: str, left: Tensor, right: Tensor) -> None:
        total = self.sums[kind]
        self.sums[kind] = left.T @ right if total is None else total.addmm_(left.T, right)

    def matrices(self) -> dict[str, Tensor]:
        """What was measured, [out, in] float32 by name; empty if no token came."""
        known = {kind: total for kind, total in self.sums.items() if total is not None}
        return {kind: total.sqrt() if kind == "turning" else total for kind, total in known.items()}
