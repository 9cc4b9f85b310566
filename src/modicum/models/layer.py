"""A reference to one weight matrix of a model, wherever it lives: read it, replace it, put it back.

    layer.weight                  # [out, in], a view of the live parameter
    layer.replace(form)           # a compressed form takes its place (or its values do, see below)
    layer.restore()               # the model is bit for bit what it was

A linear layer is exchanged for the form, so the model really runs on the compressed storage. A convolution
or an expert slice cannot be exchanged (its owner reads the tensor), so the decoded values are written into
the model and the form is remembered for saving.
"""

from __future__ import annotations

from torch import Tensor, nn

from modicum.errors import UnsupportedModel
from modicum.models.storage import Kind, Storage
from modicum.weights.base import WeightForm


class Layer:
    """One weight matrix [out_features, in_features] of a block.

    Attributes:
        name: unique module path, without ".weight"; an expert slice is "….mlp.experts.3.gate_proj".
        role: what the matrix does, in the vocabulary of `modicum.models.families`.
        block: index of the block it belongs to.
        expert: index of the expert, or None.
    """

    def __init__(
        self,
        name: str,
        role: str,
        block: int,
        storage: Storage,
        parent: nn.Module,
        attribute: str,
        expert: int | None = None,
    ) -> None:
        self.name, self.role, self.block, self.expert = name, role, block, expert
        self._storage, self._parent, self._attribute = storage, parent, attribute
        self._form: WeightForm | None = None
        self._original: tuple[Tensor, Tensor | None] | None = None
        self.out_features, self.in_features = storage.shape

    def __repr__(self) -> str:
        return f"Layer({self.name!r}, {self.role}, [{self.out_features}, {self.in_features}])"

    @property
    def kind(self) -> Kind:
        """Where the matrix lives: linear, conv1d, conv2d or expert."""
        return self._storage.kind

    @property
    def swappable(self) -> bool:
        """Whether a form really takes its place: not where the code around it reads the tensor itself."""
        return self._storage.swappable

    @property
    def module(self) -> nn.Module:
        """The module that multiplies by this matrix now: the original, the form, or the experts' owner."""
        return self._form if self._form is not None and self._storage.swappable else self._storage.module

    @property
    def form(self) -> WeightForm | None:
        """The compressed form that `replace` put here, or that the model was loaded with; None if dense."""
        loaded = self._storage.module
        return loaded if self._form is None and isinstance(loaded, WeightForm) else self._form

    @property
    def weight(self) -> Tensor:
        """[out, in]: the live parameter (or a view of it); decoded if a form has taken its place."""
        if self._form is not None and self._storage.swappable:
            return self._form.to_dense()
        return self._storage.weight

    @property
    def tensor(self) -> Tensor:
        """The original's parameter that holds this matrix, in its own shape; experts share one.

        Raises:
            UnsupportedModel: the model was loaded with a form in this place.
        """
        return self._storage.tensor

    def matrix(self, values: Tensor) -> Tensor:
        """[out, in]: the part of `values`, which has the shape of `tensor`, that belongs to this matrix."""
        return self._storage.matrix(values)

    @property
    def bias(self) -> Tensor | None:
        """[out], or None."""
        if self._form is not None and self._storage.swappable:
            return self._form.bias
        return self._storage.bias

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """State-dict names, in the original model, of the parameters that hold this matrix and its bias."""
        owner = self.name.rsplit(".", 2)[0] if self.expert is not None else self.name
        return tuple(f"{owner}.{name}" for name in self._storage.parameters)

    def set_weight(self, dense: Tensor, bias: Tensor | None = None) -> None:
        """Write values into the model, in place; a form that was put here is taken out again.

        Args:
            dense: [out, in], any float dtype; cast to the model's.
            bias: [out]; None leaves the bias as it is.

        Raises:
            UnsupportedModel: another shape, or a bias for a layer that has none.
        """
        self._check_shape(*dense.shape)
        if bias is not None and self._storage.bias is None:
            raise UnsupportedModel(f"{self.name} has no bias to write.", "Replace it by a form that has one.")
        if self._form is not None:
            self._remember()
            self._take_out()
        self._storage.write(dense, bias)

    def resize(self, weight: Tensor, bias: Tensor | None) -> None:
        """Let a matrix of another size take the place of this one for good; the anatomy is to be taken anew.

        Args:
            weight: [out, in], of any size.
            bias: [out]; None leaves things as they are.

        Raises:
            UnsupportedModel: it is compressed already, or the code around it relies on its size.
        """
        if self._form is not None:
            raise UnsupportedModel(f"{self.name} is compressed already.", "Change its size first.")
        self._storage.resize(weight, bias)
        self.out_features, self.in_features = self._storage.shape

    def replace(self, form: WeightForm) -> None:
        """Let `form` [out, in] take the place of this matrix; the original is kept, for `restore`.

        Raises:
            UnsupportedModel: the form has another shape.
        """
        self._check_shape(form.out_features, form.in_features)
        if self._storage.swappable:
            setattr(self._parent, self._attribute, form)
        else:
            self._remember()
            self._storage.write(form.to_dense(), form.bias)
        self._form = form

    def restore(self) -> None:
        """Undo `replace`: the original module is back, with its original bits."""
        self._take_out()
        if self._original is not None:
            self._storage.write(*self._original)
            self._original = None

    def forget(self) -> None:
        """Drop the form and the kept original values; the original module is back in its place."""
        self._take_out()
        self._original = None

    def _check_shape(self, *found: int) -> None:
        if found != (self.out_features, self.in_features):
            shape = [self.out_features, self.in_features]
            raise UnsupportedModel(f"{self.name} is {shape}, the new weight is {list(found)}.")

    def _take_out(self) -> None:
        if self._form is not None and self._storage.swappable:
            setattr(self._parent, self._attribute, self._storage.module)
        self._form = None

    def _remember(self) -> None:
        if self._original is None:
            bias = self._storage.bias
            weight = self._storage.weight.detach().clone()
            self._original = weight, None if bias is None else bias.detach().clone()
