"""A model without its weights: every parameter on the meta device, ready to be filled block by block.

A checkpoint larger than memory is compressed by holding one block at a time. The model's code, its config
and its computed constants (rotary frequencies) cost nothing and stay; parameters come and go with
`load_tensors` and `release`. Weights are never allocated, not even for a moment: while the model is built,
`torch.empty` gives meta tensors. The few parameters that models make otherwise (ones, zeros) follow when it
is finished.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from modicum.errors import CheckpointError, UnsupportedModel


def skeleton(config: Any, dtype: torch.dtype | None = None, auto_class: Any = None) -> nn.Module:
    """Build the model of a transformers config with all parameters on the meta device, in eval mode.

    Args:
        config: a transformers config; `config.architectures[0]` names the class. It is not modified.
        dtype: dtype of the parameters; None takes the config's, or float32.
        auto_class: a transformers Auto class, for configs that name no architecture.

    Returns:
        The model. Buffers that are not stored in checkpoints hold their computed values, on the CPU; stored
        ones (running means) hold their initial values until they are loaded.

    Raises:
        UnsupportedModel: transformers has no such class, or no class is named.
    """
    config = copy.deepcopy(config)
    dtype = dtype or getattr(config, "dtype", None) or torch.float32
    build = auto_class.from_config if auto_class is not None else _model_class(config)._from_config
    # Initial values of the parameters that are not empty draw random numbers; nobody else should notice.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), _EmptyOnMeta():
        model = build(config, dtype=dtype)
    release(model)
    _require_buffers(model)
    return model.eval()


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put values into named parameters and buffers, replacing meta tensors; tied names follow.

    Args:
        model: the model.
        tensors: name in the model's state dict -> values; floating point is cast to the dtype of the
            model's own.

    Raises:
        CheckpointError: a name that the model lacks, or a shape that differs from the model's.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    for name, tensor in tensors.items():
        own = parameters.get(name, buffers.get(name))
        if own is None:
            raise CheckpointError(f"{type(model).__name__} has no tensor named {name!r}.")
        if own.shape != tensor.shape:
            raise CheckpointError(f"{name}: the config says {list(own.shape)}, got {list(tensor.shape)}.")
        if name in buffers:
            _owner(model, name)._buffers[name.rpartition(".")[2]] = tensor.to(own.dtype)
            continue
        value = nn.Parameter(tensor.to(own.dtype), requires_grad=own.requires_grad)
        for alias in [key for key, parameter in parameters.items() if parameter is own]:
            _owner(model, alias)._parameters[alias.rpartition(".")[2]] = value
            parameters[alias] = value


def release(module: nn.Module) -> None:
    """Put every parameter below `module` on the meta device; its memory is free if nobody else holds it."""
    meta: dict[int, nn.Parameter] = {}  # by identity, so that tied parameters stay tied
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None and parameter.device.type != "meta":
                empty = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
                owner._parameters[name] = meta.setdefault(id(parameter), empty)


class _EmptyOnMeta(TorchFunctionMode):
    """While active, `torch.empty` makes meta tensors."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _model_class(config: Any) -> Any:
    names = getattr(config, "architectures", None) or []
    if not names:
        raise UnsupportedModel(
            f"The config of this {config.model_type!r} model names no architecture.",
            'Add "architectures": ["..."] to config.json, with the name of a transformers class.',
        )
    found = getattr(transformers, names[0], None)
    if found is None:
        raise UnsupportedModel(f"transformers {transformers.__version__} has no class {names[0]!r}.")
    return found


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _require_buffers(model: nn.Module) -> None:
    """A computed buffer on meta would give garbage later; refuse now."""
    for name, buffer in model.named_buffers():
        if buffer.device.type == "meta":
            raise UnsupportedModel(
                f"{type(model).__name__} does not compute its buffer {name!r} when it is built."
            )
