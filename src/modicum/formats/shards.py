"""Safetensors files read tensor by tensor and written whole or not at all.

A checkpoint directory holds either `model.safetensors` or numbered shards with an index. The reader parses the
headers first (names, dtypes, shapes: no weight is touched) and then reads single tensors into memory that it owns,
so a 100 GB checkpoint costs the size of the tensor at hand. Files are not memory-mapped: mapped pages would count
as resident memory, and a truncated map ends in a bus error instead of a message.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modicum.errors import CheckpointError, ModicumError, OutOfSpace, UnsafeCheckpoint

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies: file, dtype, shape, and its byte range in that file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    nbytes: int


def read_header(file: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file, from its header alone.

    Raises:
        CheckpointError: the file is truncated, its header is not valid, or a range lies outside the file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
            if length > size - 8:
                raise CheckpointError(f"{file} is truncated or not a safetensors file.", "Copy it again.")
            entries = json.loads(stream.read(length))
        return {
            name: _stored(file, name, entry, 8 + length, size)
            for name, entry in entries.items()
            if name != "__metadata__"
        }
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file} is missing.", "Copy the checkpoint again, with all its shards."
        ) from error
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError, OSError) as error:
        raise CheckpointError(f"The header of {file} is corrupt.", "Copy the file again.") from error


def _stored(file: Path, name: str, entry: dict[str, Any], base: int, size: int) -> Stored:
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if any(type(number) is not int for number in (start, end, *shape)):
        raise ValueError("sizes are integers")
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        raise CheckpointError(f"{file}: {name} has the dtype {entry['dtype']!r}, which modicum cannot read.")
    fits = 0 <= start <= end and base + end <= size and all(n >= 0 for n in shape)
    if not fits or end - start != prod(shape) * dtype.itemsize:
        raise CheckpointError(f"{file} is truncated or corrupt at the tensor {name}.", "Copy it again.")
    return Stored(file, dtype, shape, base + start, end - start)


class Shards:
    """The tensors of a checkpoint directory (or of one .safetensors file), read one at a time.

    Args:
        path: the directory or file.

    Raises:
        CheckpointError: no safetensors, a missing or truncated shard, an index that names absent tensors.
        UnsafeCheckpoint: only pickle files are there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, Stored] = {}
        for file in _files(path):
            self.tensors.update(read_header(file))
        _check_index(path, self.tensors)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def names(self) -> list[str]:
        """All tensor names."""
        return list(self.tensors)

    def nbytes(self, names: Iterable[str] | None = None) -> int:
        """Bytes of these tensors, or of all."""
        return sum(self.tensors[name].nbytes for name in (self.tensors if names is None else names))

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own.

        Raises:
            CheckpointError: there is no such tensor, or its bytes cannot be read.
        """
        stored = self._stored(name)
        return _read(name, stored, stored.shape, stored.start)

    def read_part(self, name: str, start: int, count: int) -> Tensor:
        """`count` values of a tensor from place `start` on, or as many as there are; flat, in memory of their own.

        Raises:
            CheckpointError: there is no such tensor, or its bytes cannot be read.
        """
        stored = self._stored(name)
        start = min(start, prod(stored.shape))
        count = min(count, prod(stored.shape) - start)
        return _read(name, stored, (count,), stored.start + start * stored.dtype.itemsize)

    def _stored(self, name: str) -> Stored:
        if name not in self.tensors:
            raise CheckpointError(f"{self.path} holds no tensor {name}.")
        return self.tensors[name]

    def summary(self) -> dict[str, int]:
        """How many tensors there are, and their bytes."""
        return {"count": len(self.tensors), "nbytes": self.nbytes()}

    def fingerprint(self) -> str:
        """Hash of names, dtypes, shapes and file sizes and times: notices an exchanged file without reading it."""
        digest = hashlib.sha256()
        for name, at in sorted(self.tensors.items()):
            digest.update(f"{name} {at.dtype} {at.shape} {at.start}\n".encode())
        for file in sorted({at.file for at in self.tensors.values()}):
            digest.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}\n".encode())
        return digest.hexdigest()


def _read(name: str, stored: Stored, shape: tuple[int, ...], start: int) -> Tensor:
    """A tensor of this shape from byte `start` of a file on."""
    try:
        tensor = torch.empty(shape, dtype=stored.dtype)
        buffer = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.nbytes else None
        with stored.file.open("rb", buffering=0) as stream:
            stream.seek(start)
            _read_into(stream, buffer)
    except (OSError, EOFError, RuntimeError, OverflowError, TypeError) as error:
        raise CheckpointError(f"{stored.file}: the tensor {name} cannot be read ({error}).") from error
    return tensor


def _read_into(stream: Any, buffer: Any) -> None:
    """Fill `buffer`; one system call moves 2 GiB at most."""
    view = memoryview(buffer) if buffer is not None else memoryview(b"")
    while len(view):
        count = stream.readinto(view)
        if not count:
            raise EOFError("the file ends early")
        view = view[count:]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix in PICKLES:
            raise _pickle_refused(path, path.name)
        return [path]
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist.", "Give a model directory or a .safetensors file.")
    index = path / INDEX
    if index.exists():
        return sorted({path / name for name in _weight_map(index).values()})
    if (path / SINGLE).exists():
        return [path / SINGLE]
    pickles = sorted(f.name for f in path.iterdir() if f.suffix in PICKLES)
    if pickles:
        raise _pickle_refused(path, pickles[0])
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{path} holds no .safetensors file.", "Is this a model directory?")
    return files


def _pickle_refused(path: Path, name: str) -> UnsafeCheckpoint:
    return UnsafeCheckpoint(
        f"{path} holds its weights as pickle ({name}), which can run code when opened.",
        "Convert it once: safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')",
    )


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weights = json.loads(index.read_text())["weight_map"]
        names = {str(k): str(v) for k, v in weights.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise CheckpointError(f"{index} is not a valid index.", "Copy it again.") from error
    if any(Path(file).name != file for file in names.values()):
        raise CheckpointError(f"{index} names a file outside its directory.")
    return names


def _check_index(path: Path, tensors: Mapping[str, Stored]) -> None:
    index = path / INDEX
    if path.is_file() or not index.exists():
        return
    missing = [name for name in _weight_map(index) if name not in tensors]
    if missing:
        raise CheckpointError(f"{index} lists {missing[0]} ({len(missing)} in all), which no shard holds.")


def write_bytes(file: Path, *parts: bytes | memoryview) -> None:
    """Write a file under a temporary name, flush it to the disk and rename it.

    Raises:
        OutOfSpace: the disk is full; the temporary file is removed.
    """
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        with temporary.open("wb") as stream:
            for part in parts:
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except OSError as error:
        raise no_space(file, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def no_space(file: Path, error: OSError) -> ModicumError:
    """The error for a file that could not be written."""
    what = f"{file} cannot be written ({error.strerror or error})."
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutOfSpace(what, "Free some space and run the same command again.")
    return CheckpointError(what, "Choose another place, or mend the permissions of this one.")


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one safetensors file, whole or not at all; the same tensors give the same bytes.

    Tensors are written one after another from where they are: nothing is serialised in memory first.
    """
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    header = make_header({name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in ready.items()})
    write_bytes(file, header, *(_as_bytes(tensor) for tensor in ready.values()))


def make_header(entries: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    """Length and JSON header of a safetensors file whose tensors lie in the given order."""
    offset = 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, (dtype, shape) in entries.items():
        end = offset + prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _as_bytes(tensor: Tensor) -> memoryview:
    if tensor.numel() == 0:
        return memoryview(b"")
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def write_json(file: Path, value: Any) -> None:
    """Write JSON with sorted keys, whole or not at all."""
    write_bytes(file, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())
