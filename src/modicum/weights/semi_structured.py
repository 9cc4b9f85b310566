"""An N:M sparse matrix: in every aligned group of M inputs at most N weights are nonzero, and N are stored.

2:4 halves the values and adds 4 bits per group: 56.25 % of a dense 16-bit matrix, with every row of equal
length. GPUs from compute capability 8.0 on multiply 2:4 matrices as they are (`modicum.kernels.sparse24`): there
the matrix is kept in the order of their kernel, which takes the same bytes. Everywhere else, and for any other
N:M, it is a storage form, multiplied as dense.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from modicum.errors import InvalidSetting
from modicum.kernels import sparse24
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
    kernel: sparse24.Kernel | None = None
    """Whose order the matrix is kept in, as buffers `kernel_0` ... that take the place of the stored tensors; they are
    made when first needed, and never saved."""

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
        if self.kernel is not None:
            shape = (self.out_features, self.in_features)
            return sparse24.expand(self._packed(), self.kernel, shape, self.dtype)
        kept = unpack_mask(self.weight_index, self.in_features)
        return self.weight_values.new_zeros(kept.shape).masked_scatter_(kept, self.weight_values)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to x W^T + bias [..., out]; on a GPU with sparse tensor cores by them, if W suits them."""
        if not self._is_sparse_product(x):
            return super().forward(x)
        self.enter_kernel_layout()
        assert self.kernel is not None
        product = sparse24.matmul(x, self._packed(), self.kernel, self.out_features)
        return product if self.bias is None else product + self.bias

    def refusal(self, device: torch.device) -> str:
        """Why the matrix is not multiplied as a sparse one on `device`; empty if it is."""
        shape = (self.out_features, self.in_features)
        return sparse24.refusal((self.n, self.m), shape, self.dtype, device)

    def enter_kernel_layout(self) -> None:
        """Keep the matrix in the order of the kernel of its device, and only so; nothing happens if it is already.

        The matrix must suit the kernel (`refusal`).
        """
        if self.kernel is not None:
            return
        kernel = sparse24.kernel_for(self.weight_values.device)
        assert kernel is not None
        packed = kernel.pack(self.to_dense())
        for index, part in enumerate(packed):
            # buffers, so that whoever counts the memory of the model counts them
            self.register_buffer(f"kernel_{index}", part, persistent=False)
        del self._buffers["weight_values"], self._buffers["weight_index"]
        self.kernel = kernel

    def _is_sparse_product(self, x: Tensor) -> bool:
        if x.dtype != self.dtype or not x.numel() or (torch.is_grad_enabled() and x.requires_grad):
            return False
        return self.kernel is not None or not self.refusal(self.weight_values.device)

    def _packed(self) -> sparse24.Packed:
        return tuple(self.get_buffer(name) for name in self._kernel_names())

    def _kernel_names(self) -> list[str]:
        return [name for name in self._buffers if name.startswith("kernel_")]

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by suffix, and the bias under "bias" if there is one."""
        self._leave_kernel_layout()
        return super().tensors()

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors of the weight; the bias is not counted."""
        return sum(prod(shape) * dtype.itemsize for shape, dtype in self.layout().values())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._leave_kernel_layout()
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._leave_kernel_layout()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._leave_kernel_layout()
        super()._load_from_state_dict(*args, **kwargs)

    def _leave_kernel_layout(self) -> None:
        if self.kernel is None:
            return
        stored = SemiStructuredWeight.from_dense(self.to_dense(), self.n, self.m)
        for name in self._kernel_names():
            del self._buffers[name]
            self._non_persistent_buffers_set.discard(name)
        self.kernel = None
        for suffix, tensor in stored.tensors().items():
            self.register_buffer(suffix, tensor)

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
