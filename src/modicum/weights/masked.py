"""An unstructured sparse matrix: one bit per weight says whether it is kept, the kept values follow in order.

At 50 % zeros a 16-bit weight takes 8 + 1 bits instead of 16. The form is for storage; it is multiplied as a
dense matrix. An entry can be kept and still be zero: the mask says what was pruned, not what happens to be
0.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from modicum.kernels.chunks import row_chunks
from modicum.kernels.packing import pack_mask, unpack_mask
from modicum.weights.base import Layout, WeightForm, make_spec


class MaskedWeight(WeightForm):
    """Stored tensors.

    - `weight_bitmask`: uint8 [out, ceil(in / 8)]; bit j of byte i is set if column 8 i + j is kept.
    - `weight_values`: `dtype` [kept], the kept values row by row.
    """

    kind: ClassVar[str] = "masked"
    expand_on_load: ClassVar[bool] = True
    weight_bitmask: Tensor
    weight_values: Tensor

    @classmethod
    def from_dense(
        cls, weight: Tensor, mask: Tensor | None = None, bias: Tensor | None = None
    ) -> MaskedWeight:
        """Keep the entries of `weight` that the mask marks.

        Args:
            weight: [out, in].
            mask: bool [out, in], True = kept; None keeps what is not zero.
            bias: [out] or None.
        """
        kept = weight != 0 if mask is None else mask
        values = weight.detach().new_empty(int(kept.count_nonzero()))
        start = 0
        for rows in row_chunks(weight.shape[0], 8 * weight.shape[1]):  # selecting makes 64-bit indices
            part = weight.detach()[rows][kept[rows].contiguous()]
            values[start : start + len(part)] = part
            start += len(part)
        spec = make_spec(cls, weight, {"kept": values.numel()})
        return cls(spec, {"weight_bitmask": pack_mask(kept), "weight_values": values}, bias)

    def layout(self) -> Layout:
        """One bit per weight and the kept values."""
        return {
            "weight_bitmask": ((self.out_features, -(-self.in_features // 8)), torch.uint8),
            "weight_values": ((int(self.settings["kept"]),), self.dtype),
        }

    def kept(self) -> Tensor:
        """bool [out, in], True where a value is stored."""
        return unpack_mask(self.weight_bitmask, self.in_features)

    def to_dense(self) -> Tensor:
        """The kept values in place, +0 elsewhere."""
        kept = self.kept()
        return self.weight_values.new_zeros(kept.shape).masked_scatter_(kept, self.weight_values)

    def check_content(self) -> None:
        """As many bits as values, none of them behind the last column."""
        bits = unpack_mask(self.weight_bitmask, 8 * self.weight_bitmask.shape[1])
        if bits[:, self.in_features :].any():
            raise self._damaged("weight_bitmask has bits behind the last column")
        if int(bits.sum()) != self.weight_values.numel():
            raise self._damaged(f"{int(bits.sum())} bits are set for {self.weight_values.numel()} values")
