"""Joining parts into shards: the same tensors, within the size, and nothing lost whenever it stops."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from modicum.errors import OutOfSpace
from modicum.formats import merge
from modicum.formats.merge import join, join_all, plan_shards, shard_name
from modicum.formats.shards import INDEX, Shards, write_tensors


def parts(folder: Path, count: int = 5) -> dict[str, Tensor]:
    """`count` parts of some 1.1 kB each; returns what they hold."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    held: dict[str, Tensor] = {}
    for i in range(count):
        own = {
            f"b{i}.weight": torch.randn(15, 16, generator=generator),
            f"a{i}.empty": torch.empty(0, 2),
            f"c{i}.packed": torch.arange(i, i + 10, dtype=torch.int32),
        }
        write_tensors(folder / f"{i:05d}.safetensors", own)
        held |= own
    return held


@settings(deadline=None, max_examples=200)
@given(sizes=st.lists(st.integers(0, 50), max_size=30), limit=st.integers(1, 60))
def test_groups_are_consecutive_and_within_the_limit(sizes: list[int], limit: int) -> None:
    groups = plan_shards(sizes, limit)
    assert [part for group in groups for part in group] == list(range(len(sizes)))
    for group in groups:
        assert sum(sizes[i] for i in group) <= limit or len(group) == 1
    for first, second in pairwise(groups):
        assert sum(sizes[i] for i in first) + sizes[second[0]] > limit


def test_names_of_shards() -> None:
    assert shard_name(0, 1) == "model.safetensors"
    assert shard_name(1, 3) == "model-00002-of-00003.safetensors"


def test_a_joined_file_holds_the_parts(tmp_path: Path) -> None:
    held = parts(tmp_path / "parts")
    found = join(sorted((tmp_path / "parts").iterdir()), tmp_path / "model.safetensors")
    assert found.keys() == held.keys()
    read = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in held.items())
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(("limit", "count"), [(10**9, 1), (3000, 3), (1, 5)])
def test_all_parts_become_shards_with_an_index(tmp_path: Path, limit: int, count: int) -> None:
    held = parts(tmp_path / "parts")
    total = sum(tensor.nbytes for tensor in held.values())
    names = join_all(tmp_path / "parts", tmp_path, limit)
    assert names == [shard_name(i, count) for i in range(count)]
    assert list((tmp_path / "parts").iterdir()) == []
    expected = {*names, "parts", *([INDEX] if count > 1 else [])}
    assert {file.name for file in tmp_path.iterdir()} == expected
    found = Shards(tmp_path)
    assert found.nbytes() == total
    assert all(torch.equal(found.read(name), tensor) for name, tensor in held.items())
    if count > 1:
        index = json.loads((tmp_path / INDEX).read_text())
        assert index["metadata"]["total_size"] == total
        for tensor, file in index["weight_map"].items():
            assert tensor in load_file(tmp_path / file)
    if count == 3:
        assert all((tmp_path / name).stat().st_size <= limit for name in names)


class Stopped(BaseException):
    """Stands for a kill: no handler in the code expects it."""


def _stopping(step: int) -> Callable[[Any], Any]:
    """Wraps functions so that the `step`-th call among all of them stops before or after its work."""
    count = iter(range(10**6))

    def wrap(function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if next(count) == step:
                raise Stopped
            result = function(*args, **kwargs)
            if next(count) == step:
                raise Stopped
            return result

        return wrapped

    return wrap


@pytest.mark.parametrize("limit", [10**9, 3000, 1])
def test_a_stop_at_any_step_can_be_repaired_by_calling_again(
    tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts(tmp_path / "whole" / "parts")
    join_all(tmp_path / "whole" / "parts", tmp_path / "whole", limit)
    wanted = {f.name: f.read_bytes() for f in (tmp_path / "whole").iterdir() if f.is_file()}
    for step in range(100):
        folder = tmp_path / f"stopped-{step}"
        parts(folder / "parts")
        wrap = _stopping(step)
        with monkeypatch.context() as patch:
            patch.setattr(merge.os, "replace", wrap(merge.os.replace))
            patch.setattr(shutil, "move", wrap(shutil.move))
            patch.setattr(Path, "unlink", wrap(Path.unlink))
            patch.setattr(merge, "_copy_range", wrap(merge._copy_range))
            try:
                join_all(folder / "parts", folder, limit)
                break
            except Stopped:
                pass
        names = join_all(folder / "parts", folder, limit)
        assert names == sorted(name for name in wanted if name.endswith(".safetensors"))
        assert {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()} == wanted
    assert step >= 12


def test_a_full_disk_keeps_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = parts(tmp_path / "parts")

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merge, "_copy_range", full)
    with pytest.raises(OutOfSpace, match="No space left"):
        join_all(tmp_path / "parts", tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    assert not list(tmp_path.glob(".*"))
    monkeypatch.undo()
    join_all(tmp_path / "parts", tmp_path)
    assert Shards(tmp_path).names() == sorted(held, key=lambda name: (int(name[1]), name))
