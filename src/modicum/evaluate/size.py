"""Size: bytes that are really there, in the files of a checkpoint and in the storages of a loaded model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from modicum.errors import CheckpointError
from modicum.weights.absent import Absent

WEIGHT_SUFFIXES = frozenset({".safetensors", ".gguf"})


class DiskSize(NamedTuple):
    """Bytes of a checkpoint: `weights` in weight files alone, `total` with config, tokenizer and the rest."""

    weights: int
    total: int


def disk_size(directory: str | Path) -> DiskSize:
    """Measures the files of a checkpoint; links are followed, so a download cache counts as what it points
    to.

    Raises:
        CheckpointError: there is no such directory, or it holds no weight file.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"There is no checkpoint directory {str(directory)!r}.", "Check the path.")
    sizes = [(path.suffix, path.stat().st_size) for path in directory.rglob("*") if path.is_file()]
    weights = sum(size for suffix, size in sizes if suffix in WEIGHT_SUFFIXES)
    if not weights:
        raise CheckpointError(
            f"{str(directory)!r} holds no weight file ({', '.join(sorted(WEIGHT_SUFFIXES))}).",
            "Point to the directory that holds config.json and the weights.",
        )
    return DiskSize(weights, sum(size for _, size in sizes))


def memory_size(model: nn.Module) -> int:
    """Bytes of all parameters and buffers; a storage that several share (tied weights) counts once."""
    return sum(by_layer(model).values())


def by_layer(model: nn.Module) -> dict[str, int]:
    """Bytes of the parameters and buffers that each module itself holds, by module name, in module order.

    A shared storage counts for the first module that has it; modules left with nothing are not listed.
    """
    seen: set[tuple[object, ...]] = set()
    sizes: dict[str, int] = {}
    for name, module in model.named_modules():
        for tensor in _own_tensors(module):
            key = _storage_key(tensor)
            if key not in seen:
                seen.add(key)
                sizes[name] = sizes.get(name, 0) + tensor.untyped_storage().nbytes()
    return {name: size for name, size in sizes.items() if size}


def parameter_count(model: nn.Module) -> int:
    """How many weights a model has; those that are coded and decoded as they are used count like any other."""
    coded = (
        value for module in model.modules() for value in vars(module).values() if isinstance(value, Absent)
    )
    return sum(p.numel() for p in model.parameters()) + sum(absent.numel() for absent in coded)


def _own_tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def _storage_key(tensor: Tensor) -> tuple[object, ...]:
    address = tensor.untyped_storage().data_ptr()
    return (tensor.device, address) if address else (tensor.device, "unallocated", id(tensor))
