"""What every weight form can do, and the registry that finds a form by the kind written in a checkpoint.

A form is a module that stands where a linear layer stood. Its *stored tensors* are buffers whose names are
the suffixes used on disk (`weight_packed`, `weight_scale` ...). Its *spec* is a small JSON object from
which an empty form with tensors of the right shape can be made before any weight is read. Files are not
trusted: `check` compares what was loaded with what the spec promised, so that a damaged file ends in a
sentence and not in a wrong read.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.errors import CheckpointError, InvalidSetting, UnknownName

FORMS: dict[str, type[WeightForm]] = {}
"""Every weight form by its kind."""

Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of each stored tensor, by suffix."""

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_DAMAGED = "The file is damaged or was written by another program; write the checkpoint again."


class WeightForm(nn.Module):
    """One compressed weight matrix [out, in] and its optional bias [out].

    Args:
        spec: see `spec`.
        tensors: the stored tensors by suffix.
        bias: [out] or None.

    Raises:
        CheckpointError: the spec is malformed or speaks of another kind or a newer version.
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    expand_on_load: ClassVar[bool]
    """Whether loading turns this form into a dense layer: it saves bytes on disk, not time or memory."""

    bias: nn.Parameter | None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        FORMS[cls.kind] = cls

    def __init__(
        self, spec: Mapping[str, Any], tensors: Mapping[str, Tensor], bias: Tensor | None = None
    ) -> None:
        super().__init__()
        self._read_spec(spec)
        for suffix, tensor in tensors.items():
            self.register_buffer(suffix, tensor)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def _read_spec(self, spec: Mapping[str, Any]) -> None:
        try:
            kind, version = spec["kind"], int(spec["version"])
            self.out_features, self.in_features = (int(size) for size in spec["shape"])
            self.dtype = _DTYPES[spec["dtype"]]
            self.settings = dict(spec["settings"])
            layout = self.layout()
        except (KeyError, TypeError, ValueError, InvalidSetting) as error:
            raise CheckpointError(
                f"The description of a {self.kind} weight is malformed: {error}", _DAMAGED
            ) from None
        if kind != self.kind or version > self.version:
            raise CheckpointError(
                f"A {kind!r} weight of version {version} cannot be read as {self.kind!r} {self.version}.",
                "Update modicum, or write the checkpoint again.",
            )
        if any(size < 0 for shape, _ in layout.values() for size in shape):
            raise CheckpointError(f"The description of a {self.kind} weight has a negative size.", _DAMAGED)

    @abstractmethod
    def to_dense(self) -> Tensor:
        """The weight matrix, `self.dtype` [out, in]."""

    @abstractmethod
    def layout(self) -> Layout:
        """Shape and dtype that each stored tensor must have according to the spec.

        Raises:
            KeyError, TypeError, ValueError, InvalidSetting: the settings are malformed.
        """

    def check_content(self) -> None:
        """Raise CheckpointError when values contradict each other; shapes and dtypes are right already."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to x W^T + bias [..., out]."""
        return F.linear(x, self.to_dense(), self.bias)

    def spec(self) -> dict[str, Any]:
        """A JSON-able description: kind, version, shape [out, in], dtype name, bias, settings of the kind."""
        return {
            "kind": self.kind,
            "version": self.version,
            "shape": [self.out_features, self.in_features],
            "dtype": dtype_name(self.dtype),
            "bias": self.bias is not None,
            "settings": dict(self.settings),
        }

    @classmethod
    def empty(cls, spec: Mapping[str, Any], bias: bool) -> Self:
        """A form whose tensors have the right shapes and no values yet; honours `torch.device("meta")`."""
        form = cls(spec, {})
        for suffix, (shape, dtype) in form.layout().items():
            form.register_buffer(suffix, torch.empty(shape, dtype=dtype))
        if bias:
            form.bias = nn.Parameter(torch.empty(form.out_features, dtype=form.dtype), requires_grad=False)
        return form

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by suffix, and the bias under "bias" if there is one."""
        stored = {suffix: self.get_buffer(suffix) for suffix in self.layout()}
        return stored if self.bias is None else {**stored, "bias": self.bias.data}

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors of the weight; the bias is not counted."""
        return sum(self.get_buffer(suffix).nbytes for suffix in self.layout())

    def check(self) -> None:
        """Verify that the tensors are what the spec says.

        Raises:
            CheckpointError: a tensor of another shape or dtype, or values that contradict each other.
        """
        expected = self.layout()
        if self.bias is not None:
            expected["bias"] = ((self.out_features,), self.dtype)
        for suffix, tensor in self.tensors().items():
            shape, dtype = expected[suffix]
            if tuple(tensor.shape) != shape or tensor.dtype != dtype:
                raise CheckpointError(
                    f"{suffix} of a {self.kind} weight is {dtype_name(tensor.dtype)} {list(tensor.shape)}, "
                    f"expected {dtype_name(dtype)} {list(shape)}.",
                    _DAMAGED,
                )
        self.check_content()

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"A {self.kind} weight [{self.out_features}, {self.in_features}]: {what}.", _DAMAGED
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype  # follow .half(), .to(dtype) ...
        return self

    def extra_repr(self) -> str:
        """Shape, dtype and settings, for printing a model."""
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        shape = (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )
        return f"{shape}, dtype={dtype_name(self.dtype)}" + (f", {settings}" if settings else "")


def from_spec(spec: Mapping[str, Any], bias: bool | None = None) -> WeightForm:
    """An empty form of the kind that `spec` names, with a bias if the spec (or `bias`) says so.

    Raises:
        UnknownName: no form has this kind.
        CheckpointError: the spec is malformed.
    """
    kind = str(spec.get("kind"))
    if kind not in FORMS:
        raise UnknownName.among("weight form", kind, FORMS)
    return FORMS[kind].empty(spec, bool(spec.get("bias")) if bias is None else bias)


def make_spec(form: type[WeightForm], weight: Tensor, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of a `form` for a matrix of the shape and dtype of `weight` [out, in]."""
    return {
        "kind": form.kind,
        "version": form.version,
        "shape": list(weight.shape),
        "dtype": dtype_name(weight.dtype),
        "settings": dict(settings),
    }


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype as files and people write it, e.g. "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    """The float dtype of that name.

    Raises:
        KeyError: not a dtype that weights are stored in.
    """
    return _DTYPES[name]
