"""An N:M sparse matrix: in every aligned group of M inputs at most N weights are nonzero, and N are stored.

2:4 halves the values and adds 4 bits per group: 56.25 % of a dense 16-bit matrix, with every row of equal
length. GPUs from compute capability 8.0 on multiply such matrices faster; here it is a storage form,
multiplied as dense.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from modicum.errors import InvalidSetting
from modicum.kernels.chunks import row_chunks
from modicum.kernels.packing import pack_mask, unpack_mask
from modicum.kernels.selection import semi_structured
from modicum.weights.base import Layout, WeightForm, make_spec


class SemiStructuredWeight(WeightForm):
    """Stored tensors; N values of every group are kept.

    - `weight_values`: `dtype` [out, in * n / m], the kept values of each row in order.
    - `weight_index`: uint8 [out, ceil(in / 8)]; bit j of byte i is set if column 8 i + j is kept.
    """

    kind: ClassVar[str] = "semi_structured"
    expand_on_load: ClassVar[bool] = True
    weight_values: Tensor
    weight_index: Tensor

    @classmethod
    def from_dense(
        cls, weight: Tensor, n: int = 2, m: int = 4, mask: Tensor | None = None, bias: Tensor | None = None
    ) -> SemiStructuredWeight:
        """Keep `n` entries of every aligned group of `m`.

        Args:
            weight: [out, in], in a multiple of `m`.
            n: entries kept per group.
            m: group length.
            mask: bool [out, in], True = kept; None keeps what is not zero.
            bias: [out] or None.

        Raises:
            InvalidSetting: the row does not consist of whole groups, or a group has more than `n` entries
            to keep.
        """
        if not 0 < n <= m or weight.shape[1] % m:
            raise InvalidSetting(
                f"A row of {weight.shape[1]} weights has no {n}:{m} pattern.", "Use the masked form."
            )
        rows, width = weight.shape
        values = weight.detach().new_empty(rows, width // m * n)
        index = torch.empty(rows, -(-width // 8), dtype=torch.uint8, device=weight.device)
        for chunk in row_chunks(rows, 8 * width):  # selecting makes 64-bit indices
            part = weight.detach()[chunk].contiguous()
            wanted = part != 0 if mask is None else mask[chunk].contiguous()
            kept = _whole_groups(wanted, n, m)
            values[chunk] = part.masked_fill(~wanted, 0.0)[kept].view(len(part), -1)
            index[chunk] = pack_mask(kept)
        tensors = {"weight_values": values, "weight_index": index}
        return cls(make_spec(cls, weight, {"n": n, "m": m}), tensors, bias)

    @property
    def n(self) -> int:
        """Weights kept per group."""
        return int(self.settings["n"])

    @property
    def m(self) -> int:
        """Group length."""
        return int(self.settings["m"])

    def layout(self) -> Layout:
        """n / m of the values and one bit per weight."""
        if not 0 < self.n <= self.m or self.in_features % self.m:
            raise ValueError(f"a row of {self.in_features} weights has no {self.n}:{self.m} pattern")
        return {
            "weight_values": ((self.out_features, self.in_features // self.m * self.n), self.dtype),
            "weight_index": ((self.out_features, -(-self.in_features // 8)), torch.uint8),
        }

    def to_dense(self) -> Tensor:
        """The kept values in place, +0 elsewhere."""
        kept = unpack_mask(self.weight_index, self.in_features)
        return self.weight_values.new_zeros(kept.shape).masked_scatter_(kept, self.weight_values)

    def check_content(self) -> None:
        """Exactly n bits per group, none of them behind the last column."""
        bits = unpack_mask(self.weight_index, 8 * self.weight_index.shape[1])
        if bits[:, self.in_features :].any():
            raise self._damaged("weight_index has bits behind the last column")
        if (bits[:, : self.in_features].unflatten(1, (-1, self.m)).sum(-1) != self.n).any():
            raise self._damaged(f"a group does not keep {self.n} of {self.m} weights")


def _whole_groups(wanted: Tensor, n: int, m: int) -> Tensor:
    """Bool [rows, in]: `wanted`, and as many other entries of every group of `m` as make it `n`.

    Raises:
        InvalidSetting: a group has more than `n` already.
    """
    if bool((wanted.unflatten(1, (-1, m)).sum(-1) > n).any()):
        raise InvalidSetting(
            f"More than {n} of {m} neighbouring weights are kept.", "Prune to the pattern first."
        )
    return semi_structured(wanted.to(torch.uint8), n, m).logical_not_()
