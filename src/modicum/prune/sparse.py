"""What all methods share that set single weights to zero: how many, in which pattern, and how layers share them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Self

from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from modicum.allocate.sparsity import Allocation, Owl
from modicum.method import LayerMethod, Target
from modicum.prune.pattern import NM, Pattern, expected_form, workspace
from modicum.weights.base import WeightForm
from modicum.weights.properties import NMPattern, Property, ZeroMask


class Sparse(LayerMethod):
    """Every layer loses the same share of its weights, unless an allocation gives each its own.

    An allocation is resolved before the first layer is worked on (`modicum.pipeline.sharing`): the step is then given
    the share of each layer, and is asked for its copy for that layer. `compress` knows one sparsity, its own.
    """

    keeps = (ZeroMask, NMPattern)

    sparsity: float = Field(0.5, ge=0, lt=1, description="fraction of the weights that become zero")
    pattern: Pattern = Field(
        None,
        description="2:4 keeps 2 of every 4 weights and replaces sparsity; 16x16 removes whole blocks, row whole rows",
    )
    allocation: Allocation = Field(
        "uniform",
        description="sparsity of each layer, sparsity being the mean: uniform; owl (less where weights stand out), or "
        "owl:5:0.08 with its M and lambda; a JSON or YAML file of {block or layer: sparsity}",
    )
    _shares: Mapping[str, float] | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _allocates_a_sparsity(self) -> Self:
        if isinstance(self.pattern, NM) and self.allocation != "uniform":
            raise ValueError(
                f"allocation: the pattern {self.pattern} fixes the share of every layer; choose a sparsity instead"
            )
        return self

    def statistics(self) -> frozenset[str]:
        """What sharing out the sparsity reads; methods add what they read themselves."""
        return frozenset({"column_norm"}) if isinstance(self.allocation, Owl) else frozenset()

    @abstractmethod
    def count(self, rows: int, columns: int) -> int:
        """How many of rows * columns weights go when there is no pattern."""

    def gives(self) -> tuple[Property, ...]:
        return (ZeroMask(), self.pattern.promise(self.sparsity)) if self.pattern else (ZeroMask(),)

    def expected_form(self, weight: Tensor) -> WeightForm:
        rows, columns = weight.shape
        if self.pattern is None:
            return expected_form(weight, self.count(rows, columns), None)
        self.pattern.check(f"A layer of {rows} outputs", rows, columns)
        return expected_form(weight, self.pattern.count(rows, columns, self.sparsity), self.pattern)

    def workspace(self, weight: Tensor) -> int:
        return workspace(weight, self.pattern)

    def check(self, target: Target) -> None:
        """Refuse a layer that the pattern does not fit.

        Raises:
            InvalidSetting: names it.
        """
        if self.pattern:
            self.pattern.check(target.name, *target.weight.shape)

    @property
    def shared(self) -> bool:
        """Whether layers have a sparsity each."""
        return self._shares is not None

    def sharing(self, shares: Mapping[str, float]) -> Self:
        """This step with a sparsity for each layer, by name; layers that are not named keep its own."""
        step = self.model_copy(update={"allocation": "uniform"})
        step._shares = shares
        return step

    def of_layer(self, name: str) -> Self:
        if self._shares is None:
            return self
        return self.model_copy(update={"sparsity": self._shares.get(name, self.sparsity)})
