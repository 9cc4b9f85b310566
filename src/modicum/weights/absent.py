"""What stands in the place of a weight that is not decoded now.

It has shape, dtype and device, and refuses to be used as values. Only a linear layer may be called by itself, outside
of its block, as a model does that computes the keys of a text once and keeps them: its block is decoded for that call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from modicum.errors import UnsupportedModel

_ASKED = frozenset(
    {"__get__", "__repr__", "size", "dim", "numel", "t", "stride", "element_size", "is_floating_point"}
)


class Absent(Tensor):
    """Stands for a weight that is not decoded now: shape, dtype and device are known, values are not.

    Attributes:
        label: name of the weight.
        values: decodes it, for a linear layer that is called by itself.
    """

    label: str
    values: Callable[[], Tensor]
    _is_hf_initialized: bool  # a mark of transformers: there is nothing to initialize

    @staticmethod
    def of(
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        label: str,
        values: Callable[[], Tensor],
    ) -> Absent:
        """A stand-in of some bytes for the weight `label`."""
        absent = torch.full((), torch.nan, dtype=dtype, device=device).expand(shape).as_subclass(Absent)
        absent.label, absent.values, absent._is_hf_initialized = label, values, True
        return absent

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        if name in _ASKED:
            with torch._C.DisableTorchFunctionSubclass():
                found = func(*args, **(kwargs or {}))
            return found.as_subclass(cls) if isinstance(found, Tensor) else found
        absent = next((a for a in args if isinstance(a, cls) and hasattr(a, "label")), None)
        if name == "linear" and absent is not None and absent is args[1]:
            return func(args[0], absent.values(), *args[2:], **(kwargs or {}))
        raise UnsupportedModel(
            f"{absent.label if absent is not None else 'A weight'} is coded and exists only while its block runs "
            f"({name}).",
            "Write the original with modicum export --plain, and open that.",
        )
