"""The plain matrix as a weight form, for methods that leave a layer alone or only change its values."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from modicum.weights.base import Layout, WeightForm, make_spec


class DenseWeight(WeightForm):
    """Stored tensors: `weight`, `dtype` [out, in]."""

    kind: ClassVar[str] = "dense"
    expand_on_load: ClassVar[bool] = True
    weight: Tensor

    @classmethod
    def from_dense(cls, weight: Tensor, bias: Tensor | None = None) -> DenseWeight:
        """Keep `weight` [out, in] as it is."""
        return cls(make_spec(cls, weight, {}), {"weight": weight.detach().contiguous()}, bias)

    def layout(self) -> Layout:
        """One matrix."""
        return {"weight": ((self.out_features, self.in_features), self.dtype)}

    def to_dense(self) -> Tensor:
        """The stored matrix itself, not a copy."""
        return self.weight
