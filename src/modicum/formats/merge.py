"""Join safetensors files into shards of bounded size by copying bytes, without holding a tensor.

Each block of a run is written as its own file. Users expect `model.safetensors`, or numbered shards of some
gigabytes with an index. Joining copies the data sections behind a new header; a part is deleted only when the shard
that contains it has its final name, so that a kill at any moment loses nothing.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import BinaryIO

from modicum.errors import CheckpointError
from modicum.formats.shards import INDEX, SINGLE, Stored, make_header, no_space, read_header, write_json

SHARD_BYTES = 5 * 10**9


def plan_shards(sizes: list[int], limit: int = SHARD_BYTES) -> list[list[int]]:
    """Consecutive parts grouped so that no shard exceeds `limit` unless a single part does."""
    groups: list[list[int]] = []
    filled = 0
    for part, size in enumerate(sizes):
        if not groups or filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(part)
        filled += size
    return groups


def shard_name(index: int, count: int) -> str:
    """`model.safetensors` for the only shard, else `model-00001-of-00003.safetensors`."""
    return SINGLE if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def join(parts: list[Path], file: Path) -> dict[str, Stored]:
    """Write `file` with the tensors of all parts, in order, and return its header.

    Raises:
        OutOfSpace: the disk is full; the parts stay.
    """
    ranges = {
        name: at
        for part in parts
        for name, at in sorted(read_header(part).items(), key=lambda item: item[1].start)
    }
    header = make_header({name: (at.dtype, at.shape) for name, at in ranges.items()})
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        with temporary.open("wb") as out:
            out.write(header)
            for at in ranges.values():
                _copy_range(at, out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)
    except OSError as error:
        raise no_space(file, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return read_header(file)


def _copy_range(at: Stored, out: BinaryIO, chunk: int = 1 << 22) -> None:
    with at.file.open("rb") as source:
        source.seek(at.start)
        left = at.nbytes
        while left:
            data = source.read(min(chunk, left))
            if not data:
                raise CheckpointError(f"{at.file} ends early.", "Delete it and run the same command again.")
            out.write(data)
            left -= len(data)


def join_all(folder: Path, directory: Path, limit: int = SHARD_BYTES) -> list[str]:
    """Turn the parts in `folder`, by name, into the final shards (and index) of `directory`; the parts are consumed.

    Returns:
        The names of the shards. May be called again after it was interrupted.
    """
    plan = directory / "shards.json"
    if not plan.exists():
        parts = sorted(folder.glob("*.safetensors"))
        if not parts:  # an earlier call was not interrupted at all
            return sorted(file.name for file in directory.glob("model*.safetensors"))
        groups = plan_shards([part.stat().st_size for part in parts], limit)
        write_json(plan, [[parts[i].name for i in group] for group in groups])
    named = json.loads(plan.read_text())
    names = [shard_name(i, len(named)) for i in range(len(named))]
    for name, group in zip(names, named, strict=True):
        if not (directory / name).exists():
            _join_or_move([folder / part for part in group], directory / name)
        for part in group:
            (folder / part).unlink(missing_ok=True)
    if len(names) > 1:
        _write_index(directory, names)
    plan.unlink()
    return names


def _join_or_move(parts: list[Path], file: Path) -> None:
    if len(parts) == 1:
        shutil.move(parts[0], file)
    else:
        join(parts, file)


def _write_index(directory: Path, names: list[str]) -> None:
    headers = {name: read_header(directory / name) for name in names}
    total = sum(at.nbytes for header in headers.values() for at in header.values())
    weight_map = {tensor: name for name, header in headers.items() for tensor in header}
    write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
