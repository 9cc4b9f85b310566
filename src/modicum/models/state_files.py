"""Checkpoints of the image models that modicum defines: state dicts in, a directory out, disagreements named.

Originals are state dicts, pickled (opened without running code) or safetensors, in one file or in shards with an
index, sometimes deep inside a training checkpoint. They are converted once to a directory of safetensors with a
`config.json`. Models are built on the meta device and take the tensors that were read: nothing is held twice.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modicum.errors import CheckpointError, OutputExists

# Names under which transformers and diffusers keep weights.
_WHOLE = (
    "model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
)
_INDEXES = tuple(f"{name}.index.json" for name in _WHOLE)
_SHOWN = 5

Prepare = Callable[[nn.Module], None]
"""What changes a model that has no weights yet."""


def unchanged(model: nn.Module) -> None:
    """Prepare nothing."""


def read_tensors(path: Path, inside: Sequence[tuple[str, ...]] = ()) -> dict[str, Tensor]:
    """The state dict in a .safetensors or .pth file, or in a directory of shards; no code in it is run.

    Args:
        path: file, or directory with an index of shards (or one file) as transformers writes them.
        inside: keys under which a file may hold the state dict, such as `("trainer", "gpt_fsdp")`.

    Raises:
        CheckpointError: missing, truncated, or not a state dict.
    """
    if path.is_dir():
        return _read_shards(path)
    try:
        data = _read(path)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} cannot be read: {reason}", "Download or copy the file again."
        ) from error
    for keys in inside:
        data = _descend(data, keys)
    if not isinstance(data, dict) or not all(isinstance(value, Tensor) for value in data.values()):
        raise CheckpointError(f"{path} is not a state dict.", "Give the file with the weights alone.")
    return data


def read_json(path: Path, kind: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: of the file.
        kind: what the directory should hold, for the message.

    Raises:
        CheckpointError: missing or no JSON object.
    """
    hint = f"Give a directory with {kind}."
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", hint) from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} does not hold an object.", hint)
    return data


def fill(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    part: str,
    dtype: Callable[[str], torch.dtype],
    *,
    derived: Collection[str] = (),
    any_shape: Collection[str] = (),
) -> None:
    """Put tensors into a module whose parameters may be on the meta device.

    Args:
        module: to fill.
        tensors: by name.
        part: what the module is, for the message.
        dtype: of the floating-point tensor of a name.
        derived: endings of names that follow from the sizes: they may be missing and are never taken.
        any_shape: endings of names among them whose shape does not matter.

    Raises:
        CheckpointError: names or shapes do not fit; the message lists them.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    optional = {name for name in wanted if name.endswith(tuple(derived))}
    common = sorted(name for name in wanted.keys() & tensors.keys() if not name.endswith(tuple(any_shape)))
    shapes = {name: (tuple(tensors[name].shape), wanted[name]) for name in common}
    refuse(
        part,
        [f"missing: {name}" for name in sorted(wanted.keys() - tensors.keys() - optional)]
        + [f"unexpected: {name}" for name in sorted(tensors.keys() - wanted.keys())]
        + [f"{name}: {has}, expected {needs}" for name, (has, needs) in shapes.items() if has != needs],
    )
    values = {
        name: tensor.to(dtype(name)) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
        if name not in optional
    }
    module.load_state_dict(values, strict=False, assign=True)


def refuse(part: str, faults: Sequence[str]) -> None:
    """Raise if tensors of a part do not fit.

    Raises:
        CheckpointError: there are faults; the message shows the first few.
    """
    if faults:
        shown = "; ".join(faults[:_SHOWN])
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise CheckpointError(
            f"The {part} weights do not fit the configuration ({len(faults)} tensors): {shown}{more}.",
            "Give the configuration or preset that the checkpoint was made for.",
        )


def stored(
    module: nn.Module, half: Callable[[str], bool], derived: Collection[str] = ()
) -> dict[str, Tensor]:
    """The tensors of a module as they go to a file: on the CPU, contiguous, without the derived ones.

    Args:
        module: to store.
        half: whether the floating-point tensor of a name becomes bfloat16.
        derived: endings of names that are left out.
    """

    def kept(name: str, tensor: Tensor) -> Tensor:
        narrow = tensor.is_floating_point() and half(name)
        return tensor.detach().to("cpu", torch.bfloat16 if narrow else tensor.dtype).contiguous()

    state = module.state_dict().items()
    return {name: kept(name, tensor) for name, tensor in state if not name.endswith(tuple(derived))}


def write_directory(out: Path, texts: Mapping[str, str], tensors: Mapping[str, dict[str, Tensor]]) -> Path:
    """Write a directory that appears whole or not at all.

    Args:
        out: directory that does not exist yet.
        texts: text files by name.
        tensors: safetensors files by name.

    Raises:
        OutputExists: `out` is there already.
    """
    if out.exists():
        raise OutputExists(f"{out} is already there.", "Name another directory, or move it away.")
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, text in texts.items():
        (partial / name).write_text(text, encoding="utf-8")
    for name, content in tensors.items():
        save_file(content, partial / name, {"format": "pt"})
    for file in partial.iterdir():
        file.chmod(0o644)
    os.replace(partial, out)
    return out


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    mapped = zipfile.is_zipfile(path)  # pickles of old are no archives, and cannot be mapped into memory
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _read_shards(directory: Path) -> dict[str, Tensor]:
    index = next((directory / name for name in _INDEXES if (directory / name).exists()), None)
    if index is None:
        whole = next((directory / name for name in _WHOLE if (directory / name).exists()), None)
        if whole is None:
            raise CheckpointError(
                f"{directory} holds no weights.", f"It should have one of {', '.join(_INDEXES + _WHOLE)}."
            )
        return read_tensors(whole)
    places = read_json(index, "an index of shards").get("weight_map")
    if not isinstance(places, dict):
        raise CheckpointError(f"{index} has no weight_map.", "Download or copy the file again.")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        tensors |= read_tensors(directory / Path(shard).name)
    if missing := sorted(places.keys() - tensors.keys()):
        raise CheckpointError(
            f"The shards of {directory} lack {len(missing)} tensors of their index, first {missing[0]}.",
            "Download or copy the directory again.",
        )
    return tensors


def _descend(data: Any, keys: tuple[str, ...]) -> Any:
    """What lies under `keys`, or the data itself if it is laid out another way."""
    inner = data
    for key in keys:
        if not isinstance(inner, dict) or key not in inner:
            return data
        inner = inner[key]
    return inner
