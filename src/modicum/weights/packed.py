"""Integer codes packed without wasted bits, with one scale (and zero point) per group of weights.

The tensors are named and laid out exactly as compressed-tensors' `pack-quantized` format stores them, so
exporting to transformers and vLLM is a matter of writing them down: w = (code - zero_point) * scale.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from math import prod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from modicum.errors import NotFinite
from modicum.kernels import int4
from modicum.kernels.grids import IntegerScheme, dequantize, fit_grid, quantize
from modicum.kernels.packing import pack_bits, packed_words, unpack_bits
from modicum.weights.base import Layout, WeightForm, dtype_name, dtype_of, make_spec


class PackedWeight(WeightForm):
    """Stored tensors, for `bits` bits and `groups` groups per row.

    - `weight_packed`: int32 [out, ceil(in * bits / 32)], codes + 2**(bits-1) as a bit stream per row.
    - `weight_scale`: [out, groups], in the dtype that the setting `scale_dtype` names.
    - `weight_shape`: int64 [2], out and in.
    - `weight_zero_point`: int32 [ceil(out * bits / 32), groups], packed down the columns; asymmetric only.
    """

    kind: ClassVar[str] = "packed"
    expand_on_load: ClassVar[bool] = False
    weight_packed: Tensor
    weight_scale: Tensor
    weight_shape: Tensor
    weight_zero_point: Tensor
    kernel_codes: Tensor
    kernel_grid: Tensor
    """The codes once more, as the 4-bit kernel wants them; made when first needed, never saved."""

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        scheme: IntegerScheme,
        bias: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> PackedWeight:
        """Pack codes that a quantiser has chosen.

        Args:
            codes: int8 [out, in], in [-2**(bits-1), 2**(bits-1) - 1].
            scale: [out, groups], stored in its own dtype.
            zero_point: int32 [out, groups]; None for a symmetric scheme.
            scheme: the grid.
            bias: [out] or None.
            dtype: what the weight expands to; None = the dtype of `scale`.
        """
        offset = -scheme.lowest
        tensors = {
            "weight_packed": pack_bits(codes.view(torch.uint8) + offset, scheme.bits),
            "weight_scale": scale.detach().contiguous(),
            "weight_shape": torch.tensor(codes.shape, dtype=torch.int64, device=codes.device),
        }
        if zero_point is not None:
            tensors["weight_zero_point"] = pack_bits((zero_point + offset).T, scheme.bits).T.contiguous()
        settings = {
            "bits": scheme.bits,
            "group_size": scheme.group_size,
            "symmetric": scheme.symmetric,
            "scale_dtype": dtype_name(scale.dtype),
        }
        like = torch.empty(codes.shape, dtype=dtype or scale.dtype, device="meta")
        return cls(make_spec(cls, like, settings), tensors, bias)

    @classmethod
    def from_dense(cls, weight: Tensor, scheme: IntegerScheme, bias: Tensor | None = None) -> PackedWeight:
        """Round every entry of `weight` [out, in] to the nearest point of its group's grid."""
        weight = weight.detach()
        scale, zero_point = fit_grid(weight, scheme, weight.dtype)
        codes = quantize(weight, scale, zero_point, scheme)
        return cls.from_codes(codes, scale, zero_point, scheme, bias, weight.dtype)

    @property
    def scheme(self) -> IntegerScheme:
        """The grid of the codes."""
        return IntegerScheme(
            int(self.settings["bits"]), int(self.settings["group_size"]), bool(self.settings["symmetric"])
        )

    def layout(self) -> Layout:
        """Codes, scales, shape and, if asymmetric, zero points."""
        scheme = self.scheme
        groups = scheme.groups(self.in_features)
        layout: Layout = {
            "weight_packed": ((self.out_features, packed_words(self.in_features, scheme.bits)), torch.int32),
            "weight_scale": ((self.out_features, groups), dtype_of(self.settings["scale_dtype"])),
            "weight_shape": ((2,), torch.int64),
        }
        if not scheme.symmetric:
            layout["weight_zero_point"] = (
                (packed_words(self.out_features, scheme.bits), groups),
                torch.int32,
            )
        return layout

    def codes(self) -> Tensor:
        """The signed codes: int8 [out, in]."""
        if "weight_packed" not in self._buffers:
            return int4.unpack(self.kernel_codes)
        unsigned = unpack_bits(self.weight_packed, self.scheme.bits, self.in_features)
        return unsigned.view(torch.int8) + self.scheme.lowest  # wraps to the right code also at 8 bits

    def zero_point(self) -> Tensor | None:
        """The signed zero points: int32 [out, groups], or None."""
        if self.scheme.symmetric:
            return None
        unsigned = unpack_bits(self.weight_zero_point.T.contiguous(), self.scheme.bits, self.out_features)
        return unsigned.T.to(torch.int32) + self.scheme.lowest

    def to_dense(self) -> Tensor:
        """(codes - zero point) * scale, rounded once to `dtype`."""
        return dequantize(self.codes(), self.weight_scale, self.zero_point(), self.scheme, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to x W^T + bias [..., out]; a few bfloat16 tokens on a CPU take the 4-bit kernel."""
        if not (self._has_kernel and int4.is_usable(x, self.weight_scale)):
            return super().forward(x)
        if "kernel_codes" not in self._buffers:
            self._enter_kernel_layout()
        product = int4.matmul(x, self.kernel_codes, self.kernel_grid)
        return product if self.bias is None else product + self.bias

    @cached_property
    def _has_kernel(self) -> bool:
        return int4.suits(self.out_features, self.in_features, self.scheme)

    def check_content(self) -> None:
        """The stored shape is the shape, and every scale is a finite number."""
        if self.weight_shape.tolist() != [self.out_features, self.in_features]:
            raise self._damaged(f"weight_shape says {self.weight_shape.tolist()}")
        if not bool(torch.isfinite(self.weight_scale).all()):
            raise NotFinite(
                "weight_scale of a packed weight holds NaN or infinity.", "Quantise the layer again."
            )

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
        super()._apply(fn, recurse)
        self.settings["scale_dtype"] = dtype_name(self.weight_scale.dtype)
        return self

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._leave_kernel_layout()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._leave_kernel_layout()
        super()._load_from_state_dict(*args, **kwargs)

    def _enter_kernel_layout(self) -> None:
        """Keep the codes as the kernel reads them, and only so if they can be read back from there."""
        codes = self.codes()
        packed, grid = int4.repack(codes, self.weight_scale, self.zero_point())
        # buffers, so that whoever counts the memory of the model counts them; never saved
        self.register_buffer("kernel_codes", packed, persistent=False)
        self.register_buffer("kernel_grid", grid, persistent=False)
        if int4.is_known_layout(packed) and torch.equal(int4.unpack(packed), codes):
            del self._buffers["weight_packed"]

    def _leave_kernel_layout(self) -> None:
        if "weight_packed" not in self._buffers:
            offset = -self.scheme.lowest
            packed = pack_bits(self.codes().to(torch.int16) + offset, self.scheme.bits)
            self.register_buffer("weight_packed", packed)
        self._forget_kernel_copy()

    def _forget_kernel_copy(self) -> None:
        for name in ("kernel_codes", "kernel_grid"):
            self._buffers.pop(name, None)
            self._non_persistent_buffers_set.discard(name)
