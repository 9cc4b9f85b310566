"""Runs: the same bytes for the same seed, and for any history of kills and repetitions."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from modicum import api
from modicum.cli.app import app
from modicum.cli.failures import explain
from modicum.errors import DeviceUnavailable, OutOfSpace, OutputExists, UnusableData
from modicum.formats.manifest import FILE
from modicum.pipeline import checkpoint, run, workspace
from modicum.pipeline.recipe import parse

STEPS: list[Any] = [{"prune.wanda": {}}, {"quantize.gptq": {"group_size": 32}}]


class Stopped(BaseException):
    """Stands for a kill: no handler in the code expects it."""


@pytest.fixture(scope="module")
def whole(tiny_llama: Path, tokens: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    api.prepare(tiny_llama, STEPS, out, data=tokens).execute()
    return out


def test_the_same_run_gives_the_same_bytes(
    whole: Path, tiny_llama: Path, tokens: torch.Tensor, tmp_path: Path, toolbox: Any
) -> None:
    torch.manual_seed(77)
    api.prepare(tiny_llama, STEPS, tmp_path / "out", data=tokens).execute()
    assert toolbox.hashes(tmp_path / "out") == toolbox.hashes(whole)


def test_hidden_states_on_disk_give_the_same_bytes(
    whole: Path, tiny_llama: Path, tokens: torch.Tensor, tmp_path: Path, toolbox: Any
) -> None:
    api.prepare(tiny_llama, STEPS, tmp_path / "out", data=tokens, offload=True).execute()
    assert toolbox.hashes(tmp_path / "out") == toolbox.hashes(whole)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_the_seed_draws_the_windows(tiny_llama: Path, tmp_path: Path, toolbox: Any) -> None:
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        recipe = parse({"steps": ["prune.wanda"], "calibration": {"samples": 4, "length": 16}, "seed": seed})
        api.prepare(tiny_llama, recipe, tmp_path / name).execute()
        found.append(toolbox.hashes(tmp_path / name)["model.safetensors"])
    assert found[0] == found[1] != found[2]


def _stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Make the `step`-th change of the disk stop before or after it happens; yields the changes so far."""
    count = 0

    def wrap(function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            for after in (False, True):
                count += 1
                if count == step:
                    raise Stopped
                if not after:
                    result = function(*args, **kwargs)
            return result

        return wrapped

    monkeypatch.setattr(os, "replace", wrap(os.replace))
    monkeypatch.setattr(workspace.shutil, "rmtree", wrap(workspace.shutil.rmtree))
    monkeypatch.setattr(checkpoint.shutil, "copyfile", wrap(checkpoint.shutil.copyfile))
    while True:
        yield count


def test_a_stop_at_any_change_of_the_disk_is_taken_up_by_the_same_command(
    whole: Path,
    tiny_llama: Path,
    tokens: torch.Tensor,
    tmp_path: Path,
    toolbox: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted, stops = toolbox.hashes(whole), 0
    for step in range(1, 100):
        out = tmp_path / f"out-{step}"
        prepared = [api.prepare(tiny_llama, STEPS, out, data=tokens, overwrite=True) for _ in range(2)]
        out.mkdir()
        (out / FILE).write_text("an older result")
        with monkeypatch.context() as patch:
            changes = _stop_at(step, patch)
            next(changes)
            try:
                prepared[0].execute()
                break
            except Stopped:
                stops += 1
        if out.exists():  # never a mixture
            state = toolbox.hashes(out)
            assert list(state) == [FILE] or wanted.items() <= state.items()
        prepared[1].execute()
        assert toolbox.hashes(out) == wanted, f"after a stop at change {step}"
        assert not out.with_name(out.name + ".partial").exists()
    assert stops > 30


SLOW = ["--set", "group_size=32", "--samples", "24", "--length", "256"]


@pytest.fixture(scope="module")
def deep_llama(tiny_models: Any) -> Path:
    return tiny_models("llama", "bfloat16", num_hidden_layers=8, hidden_size=128, max_position_embeddings=256)


def _arguments(model: Path, out: Path) -> list[str]:
    method = ["--method", "prune.wanda", "--method", "quantize.gptq"]
    return ["compress", str(model), *method, *SLOW, "--out", str(out)]


def _line(model: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "modicum", *_arguments(model, out)]


def _wait_for_work(partial: Path, alive: Callable[[], bool]) -> None:
    """Return when the process begins to write."""
    while not (partial / "run.json").exists() and alive():
        time.sleep(0.005)


def _forked(model: Path, out: Path) -> multiprocessing.process.BaseProcess:
    """The same command in a process of its own that need not import everything again."""
    process = multiprocessing.get_context("fork").Process(target=_command, args=(_arguments(model, out),))
    process.start()
    return process


def _command(arguments: list[str]) -> None:
    os._exit(explain(app, arguments))


def _finishing(partial: Path, out: Path) -> None:
    """Wait for the moment when the shards are joined or the directory gets its name."""
    while not out.exists() and not (partial / "config.json").exists():
        time.sleep(0.0005)


def test_killed_processes_are_taken_up_and_end_with_the_same_bytes(
    deep_llama: Path, tmp_path: Path, toolbox: Any
) -> None:
    """`kill -9` four times at random moments of one run, once more while it finishes, then the command line."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    process = _forked(deep_llama, whole)
    _wait_for_work(tmp_path / "whole.partial", process.is_alive)
    began = time.monotonic()
    process.join()
    assert process.exitcode == 0
    duration, chance, partial = time.monotonic() - began, random.Random(5), tmp_path / "out.partial"
    for kill in range(5):
        process = _forked(deep_llama, out)
        _wait_for_work(partial, process.is_alive)
        if kill < 4:
            time.sleep(chance.uniform(0, duration / 4))
        else:
            _finishing(partial, out)
        process.kill()
        process.join()
        if process.exitcode == 0:  # it was faster than the kill
            break
        assert process.exitcode == -signal.SIGKILL
        assert partial.exists() or out.exists()
    if not out.exists() or (out / "run.json").exists():
        last = subprocess.run(_line(deep_llama, out), capture_output=True, text=True, check=True)
        assert "was finished before" in last.stdout
    assert toolbox.hashes(out) == toolbox.hashes(whole)
    assert not partial.exists()


def _heeding_interrupts() -> None:
    """What a shell starts in the background ignores SIGINT, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_says_how_to_go_on(deep_llama: Path, tmp_path: Path) -> None:
    line = _line(deep_llama, tmp_path / "out")
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_heeding_interrupts
    )
    _wait_for_work(tmp_path / "out.partial", lambda: process.poll() is None)
    time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "same command goes on" in errors
    assert "Traceback" not in errors
    assert (tmp_path / "out.partial").is_dir()
    assert not (tmp_path / "out").exists()


def _unfinished(model: Path, out: Path, tokens: torch.Tensor) -> None:
    begun = api.prepare(model, STEPS, out, data=tokens)
    begun.progress = _StopAfterOneBlock()
    with pytest.raises(Stopped):
        begun.execute()


class _StopAfterOneBlock(run.Silent):
    def finished(self, block: int) -> None:
        raise Stopped


@pytest.mark.parametrize("other", ["recipe", "data", "format", "dtype", "seed"])
def test_an_unfinished_run_of_something_else_is_not_taken_up(
    other: str, tiny_llama: Path, tokens: torch.Tensor, tmp_path: Path
) -> None:
    _unfinished(tiny_llama, tmp_path / "out", tokens)
    steps: Any = ["prune.wanda"] if other == "recipe" else STEPS
    recipe = parse({"steps": steps, "seed": int(other == "seed")})
    data = tokens.flip(0) if other == "data" else tokens
    form: Any = "modicum" if other == "format" else "auto"
    dtype = torch.float32 if other == "dtype" else None
    changed = api.prepare(tiny_llama, recipe, tmp_path / "out", data=data, form=form, dtype=dtype)
    with pytest.raises(OutputExists, match=r"out\.partial"):
        changed.execute()
    api.prepare(tiny_llama, STEPS, tmp_path / "out", data=tokens).execute()


def test_finished_blocks_are_not_done_again(tiny_llama: Path, tokens: torch.Tensor, tmp_path: Path) -> None:
    _unfinished(tiny_llama, tmp_path / "out", tokens)
    told = []

    class Told(run.Silent):
        def planned(self, plan: Any, finished_blocks: int) -> None:
            told.append(finished_blocks)

        def finished(self, block: int) -> None:
            told.append(block)

    api.prepare(tiny_llama, STEPS, tmp_path / "out", data=tokens, progress=Told()).execute()
    assert told == [1, 1, 2]


def test_an_existing_output_is_refused_before_anything_is_done(
    tiny_llama: Path, tokens: torch.Tensor, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        prepared = api.prepare(tiny_llama, STEPS, tmp_path / "out", data=tokens, overwrite=overwrite)
        with pytest.raises(OutputExists, match="out exists"):
            prepared.execute()
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "thesis.txt"]


def test_a_file_and_the_root_are_no_output(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", Path("/")):
        with pytest.raises(OutputExists):
            api.prepare(tiny_llama, ["prune.magnitude"], out, overwrite=True).execute()
    with pytest.raises(Exception, match="cannot be written"):
        api.prepare(tiny_llama, ["prune.magnitude"], tmp_path / "file" / "out").execute()


def test_overwrite_replaces_the_whole_directory(
    whole: Path, tiny_llama: Path, tokens: torch.Tensor, tmp_path: Path, toolbox: Any
) -> None:
    api.prepare(tiny_llama, ["prune.magnitude"], tmp_path / "out").execute()
    (tmp_path / "out" / "report.html").write_text("of the old one")
    (tmp_path / "out.old").mkdir()
    api.prepare(tiny_llama, STEPS, tmp_path / "out", data=tokens, overwrite=True).execute()
    assert toolbox.hashes(tmp_path / "out") == toolbox.hashes(whole)
    assert {entry.name for entry in tmp_path.iterdir()} == {"out", "out.old"}


def test_a_disk_that_fills_up_leaves_a_run_that_can_go_on(
    whole: Path,
    tiny_llama: Path,
    tokens: torch.Tensor,
    tmp_path: Path,
    toolbox: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, count = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == 5:
            raise OSError(28, "No space left on device")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutOfSpace, match="No space left"):
        api.prepare(tiny_llama, STEPS, tmp_path / "out", data=tokens).execute()
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "out.partial").rglob(".*"))
    api.prepare(tiny_llama, STEPS, tmp_path / "out", data=tokens).execute()
    assert toolbox.hashes(tmp_path / "out") == toolbox.hashes(whole)


def test_a_run_without_room_does_not_begin(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 999, 1))  # type: ignore[attr-defined]
    with pytest.raises(OutOfSpace, match="GB free"):
        api.prepare(tiny_llama, ["prune.magnitude"], tmp_path / "out").execute()


@pytest.mark.parametrize(
    "data",
    [
        torch.full((2, 8), 10**6),
        torch.full((2, 8), -1),
        torch.zeros(8, dtype=torch.int64),
        torch.zeros(2, 8),
        torch.zeros(0, 8, dtype=torch.int64),
    ],
)
def test_windows_that_the_model_cannot_read(data: torch.Tensor, tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UnusableData):
        api.prepare(tiny_llama, STEPS, tmp_path / "out", data=data)


@pytest.mark.parametrize("device", ["cuda:7", "nowhere", "meta", ""])
def test_a_device_that_is_not_there(device: str, tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="not available"):
        api.prepare(tiny_llama, ["prune.magnitude"], tmp_path / "out", device=device)


def test_the_manifest_of_a_repeated_run_is_complete(
    tiny_llama: Path, tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the shards were joined: the hashes must still be there."""

    def stopped(file: Path) -> str:
        raise Stopped

    prepared = [api.prepare(tiny_llama, STEPS, tmp_path / "out", data=tokens) for _ in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "file_hash", stopped)
        with pytest.raises(Stopped):
            prepared[0].execute()
    prepared[1].execute()
    files = json.loads((tmp_path / "out" / FILE).read_text())["files"]
    assert list(files) == ["model.safetensors"]
