"""Safetensors files: the same bytes as everybody else's, and a sentence for whatever is wrong with one."""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from modicum.errors import CheckpointError, ModicumError, OutOfSpace, UnsafeCheckpoint
from modicum.formats import shards
from modicum.formats.shards import DTYPES, INDEX, SINGLE, Shards, write_json, write_tensors


def tensors() -> dict[str, Tensor]:
    """One tensor of every dtype, an empty one, a scalar, a transposed and a sliced one."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 2, (3, 40), dtype=torch.uint8, generator=generator)
    made = {
        f"of.{name}": raw.view(dtype) if dtype.itemsize == 1 else raw.view(torch.uint8).view(dtype)
        for name, dtype in DTYPES.items()
    }
    values = torch.randn(5, 7, generator=generator)
    return {
        **made,
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(3.5, dtype=torch.bfloat16),
        "turned": values.t(),
        "sliced": values[:, 2:5],
    }


def same(a: Tensor, b: Tensor) -> bool:
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and torch.equal(
            a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8)
        )
    )


def test_what_is_written_is_what_the_safetensors_library_reads(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", tensors())
    read = load_file(tmp_path / "a.safetensors")
    assert read.keys() == tensors().keys()
    assert all(same(read[name], tensor) for name, tensor in tensors().items())


def test_what_the_safetensors_library_writes_is_what_is_read(tmp_path: Path) -> None:
    save_file({k: v.clone().contiguous() for k, v in tensors().items()}, tmp_path / SINGLE, {"format": "pt"})
    for path in (tmp_path, tmp_path / SINGLE):
        found = Shards(path)
        assert set(found.names()) == tensors().keys()
        assert all(same(found.read(name), tensor) for name, tensor in tensors().items())
        assert found.nbytes() == sum(t.nbytes for t in tensors().values())


def test_the_same_tensors_give_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", tensors())
    write_tensors(tmp_path / "b", dict(reversed(tensors().items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_data_begins_at_a_multiple_of_eight_bytes(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {"x" * 13: torch.ones(3)})
    assert struct.unpack("<Q", (tmp_path / "a").read_bytes()[:8])[0] % 8 == 0


@given(start=st.integers(0, 40), count=st.integers(0, 40))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_part_of_a_tensor_is_a_slice_of_it(tmp_path: Path, start: int, count: int) -> None:
    whole = torch.arange(30, dtype=torch.bfloat16).view(5, 6)
    save_file({"a": torch.ones(3), "w": whole, "z": torch.ones(3)}, tmp_path / "model.safetensors")
    part = Shards(tmp_path).read_part("w", start, count)
    assert part.dtype == torch.bfloat16
    assert torch.equal(part, whole.flatten()[start : start + count])


def test_a_tensor_that_was_read_is_writable_and_its_own(tmp_path: Path) -> None:
    write_tensors(tmp_path / SINGLE, {"a": torch.zeros(4)})
    found = Shards(tmp_path)
    found.read("a").add_(1)
    assert torch.equal(found.read("a"), torch.zeros(4))


def _read_everything(path: Path) -> None:
    found = Shards(path)
    for name in found.names():
        found.read(name)


def _complaint(path: Path) -> str | None:
    """What our error says of the checkpoint; None if all of it can be read. Other errors are raised."""
    try:
        _read_everything(path)
    except ModicumError as error:
        return error.what
    return None


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("good") / "a"
    write_tensors(
        file, {"a.weight": torch.ones(6, 4), "b": torch.ones(3, dtype=torch.int64), "c": torch.ones(0, 9)}
    )
    return file.read_bytes()


_HYPOTHESIS: Any = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@_HYPOTHESIS
@given(data=st.data())
def test_damaged_bytes_raise_nothing_but_our_errors(good: bytes, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(good)
    header = 8 + struct.unpack("<Q", good[:8])[0]
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    (tmp_path / SINGLE).write_bytes(content)
    assert SINGLE in (_complaint(tmp_path) or SINGLE)


_ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(-5, 2**66) | st.floats() | st.text(max_size=2), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)
_ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from([*DTYPES, "F4", ""]) | _ODD,
        "shape": st.lists(st.integers(0, 4), max_size=3) | _ODD,
        "data_offsets": st.tuples(st.integers(0, 64), st.integers(0, 64)).map(list) | _ODD,
    },
)


@_HYPOTHESIS
@given(header=st.dictionaries(st.text(max_size=3), _ENTRY | _ODD, max_size=3) | _ODD)
def test_any_json_as_header_raises_nothing_but_our_errors(tmp_path: Path, header: Any) -> None:
    text = json.dumps(header).encode()
    (tmp_path / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))
    assert SINGLE in (_complaint(tmp_path) or SINGLE)


@_HYPOTHESIS
@given(content=st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_our_errors(tmp_path: Path, content: bytes) -> None:
    for name in (SINGLE, INDEX):
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / INDEX).unlink(missing_ok=True)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError):
            _read_everything(tmp_path)


def test_a_file_cut_short_after_the_header_was_read(tmp_path: Path) -> None:
    write_tensors(tmp_path / SINGLE, {"a": torch.ones(100)})
    found = Shards(tmp_path)
    os.truncate(tmp_path / SINGLE, (tmp_path / SINGLE).stat().st_size - 4)
    with pytest.raises(CheckpointError, match="tensor a"):
        found.read("a")
    with pytest.raises(CheckpointError, match="truncated"):
        Shards(tmp_path)


def _sharded(folder: Path) -> Path:
    write_tensors(folder / "model-00001-of-00002.safetensors", {"a": torch.ones(2)})
    write_tensors(folder / "model-00002-of-00002.safetensors", {"b": torch.zeros(2)})
    weights = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    write_json(folder / INDEX, {"metadata": {}, "weight_map": weights})
    return folder


def test_shards_are_found_through_the_index(tmp_path: Path) -> None:
    found = Shards(_sharded(tmp_path))
    assert {name: float(found.read(name)[0]) for name in found.names()} == {"a": 1.0, "b": 0.0}


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (_sharded(tmp_path) / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors is missing"):
        Shards(tmp_path)


@pytest.mark.parametrize("place", ["../a.safetensors", "/etc/passwd", "sub/a.safetensors", "..", ""])
def test_an_index_cannot_lead_out_of_its_directory(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)})
    write_json(folder / INDEX, {"weight_map": {"a": place}})
    with pytest.raises(CheckpointError):
        Shards(folder)


def test_an_index_that_lists_absent_tensors(tmp_path: Path) -> None:
    index = json.loads((_sharded(tmp_path) / INDEX).read_text())
    index["weight_map"]["ghost"] = index["weight_map"]["a"]
    write_json(tmp_path / INDEX, index)
    with pytest.raises(CheckpointError, match="ghost"):
        Shards(tmp_path)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": ["a"]}'])
def test_an_index_that_is_none(tmp_path: Path, index: str) -> None:
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(CheckpointError, match="not a valid index"):
        Shards(tmp_path)


def test_a_pickle_is_refused_and_the_hint_converts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"a.weight": torch.randn(3, 3), "b": torch.arange(4)}
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsafeCheckpoint, match=r"pytorch_model\.bin") as refusal:
        Shards(tmp_path)
    with pytest.raises(UnsafeCheckpoint):
        Shards(tmp_path / "pytorch_model.bin")
    line = refusal.value.hint.partition(": ")[2]
    monkeypatch.chdir(tmp_path)
    exec(f"import safetensors.torch, torch\n{line.replace('FILE', repr('pytorch_model.bin'))}")
    found = Shards(tmp_path)
    assert all(torch.equal(found.read(name), tensor) for name, tensor in state.items())


def test_a_directory_without_weights_and_a_path_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors"):
        Shards(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        Shards(tmp_path / "nowhere")
    write_tensors(tmp_path / SINGLE, {"a": torch.ones(2)})
    with pytest.raises(CheckpointError, match="holds no tensor b"):
        Shards(tmp_path).read("b")


def test_the_fingerprint_notices_an_exchanged_file(tmp_path: Path) -> None:
    write_tensors(tmp_path / SINGLE, {"a": torch.zeros(4)})
    before = Shards(tmp_path).fingerprint()
    assert before == Shards(tmp_path).fingerprint()
    write_tensors(tmp_path / SINGLE, {"a": torch.ones(4)})
    os.utime(tmp_path / SINGLE, ns=(1, 1))
    assert Shards(tmp_path).fingerprint() != before


_FULL = """
import resource, sys
import torch
from pathlib import Path
from modicum.errors import OutOfSpace
from modicum.formats.shards import write_tensors
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_tensors(Path(sys.argv[1]), {"a": torch.ones(100_000)})
except OutOfSpace as error:
    print(error)
"""


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """The limit on file sizes stops the write half way, as a full disk does."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)
    line = [sys.executable, "-c", _FULL, str(tmp_path / SINGLE)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert SINGLE in done.stdout
    assert "Free some space" in done.stdout
    assert list(tmp_path.iterdir()) == []


class _Full:
    """A file that takes nothing, as /dev/full does."""

    def __init__(self, file: Path) -> None:
        self.stream = open("/dev/full", "wb", buffering=0)  # noqa: SIM115

    def __enter__(self) -> Any:
        return self.stream

    def __exit__(self, *exception: object) -> None:
        self.stream.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_no_space_left_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").write_text("kept")
    monkeypatch.setattr(Path, "open", lambda self, mode="r": _Full(self))
    with pytest.raises(OutOfSpace, match="No space left"):
        write_tensors(tmp_path / "old", {"a": torch.ones(10)})
    monkeypatch.undo()
    assert (tmp_path / "old").read_text() == "kept"
    assert [file.name for file in tmp_path.iterdir()] == ["old"]


def test_what_cannot_be_written_for_another_reason_is_not_called_full(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written") as caught:
        write_json(tmp_path / "nowhere" / "a.json", {})
    assert "space" not in caught.value.hint


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tensors(tmp_path / SINGLE, {"a": torch.zeros(4)})
    before = (tmp_path / SINGLE).read_bytes()

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shards.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_tensors(tmp_path / SINGLE, {"a": torch.ones(4)})
    assert (tmp_path / SINGLE).read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [SINGLE]
