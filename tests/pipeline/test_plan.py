"""The plan: nothing is touched for it, and what it says of bytes and memory is what happens."""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from modicum import api
from modicum.formats.shards import Shards, read_header
from modicum.pipeline.recipe import parse

METHODS: dict[str, list[Any]] = {
    "magnitude": [{"prune.magnitude": {"sparsity": 0.7}}],
    "wanda": [{"prune.wanda": {}}],
    "2:4": [{"prune.sparsegpt": {"pattern": "2:4"}}],
    "rtn": [{"quantize.rtn": {"bits": 3, "group_size": 32}}],
    "gptq": [{"quantize.gptq": {"group_size": 16, "symmetric": False}}],
    "awq": [{"quantize.awq": {"bits": 8, "group_size": -1}}],
    "partial": [{"prune.wanda": {"skip": ["q"]}}, {"quantize.rtn": {"only": ["down"]}}],
}


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("method", METHODS)
def test_the_size_that_is_planned_is_the_size_that_is_written(
    name: str, method: str, tiny_models: Any, tokens: torch.Tensor, tmp_path: Path
) -> None:
    for form in ("auto", "plain", "modicum"):
        run = api.prepare(
            tiny_models(name),
            METHODS[method],
            tmp_path / form,
            data=tokens,
            form=form,  # type: ignore[arg-type]
        )
        run.execute()
        written = Shards(tmp_path / form).nbytes()
        assert run.plan.weights_before == Shards(tiny_models(name)).nbytes()
        assert written == pytest.approx(run.plan.weights_after, rel=0.01), form


def test_planning_reads_no_weight_and_writes_no_file(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toolbox: Any
) -> None:
    def forbidden(self: Any, name: str) -> None:
        raise AssertionError(f"{name} was read")

    before = toolbox.hashes(tiny_llama)
    monkeypatch.setattr(Shards, "read", forbidden)
    monkeypatch.chdir(tmp_path)
    plan = api.plan(tiny_llama, ["prune.wanda", {"quantize.gptq": {"group_size": 32}}])
    assert plan.tokens > 0
    assert json.loads(json.dumps(plan.to_dict()))["layers"][0]["steps"] == ["prune.wanda", "quantize.gptq"]
    assert list(tmp_path.iterdir()) == []
    assert toolbox.hashes(tiny_llama) == before


def test_every_weight_matrix_is_touched_or_skipped_for_a_reason(tiny_models: Any) -> None:
    plan = api.plan(tiny_models("llama"), [{"quantize.rtn": {"skip": ["down"]}}])
    named = {layer.name for layer in plan.layers} | {name for name, _ in plan.skipped}
    stored = read_header(tiny_models("llama") / "model.safetensors")
    assert {name.removesuffix(".weight") for name, at in stored.items() if len(at.shape) == 2} == named
    assert all(reason for _, reason in plan.skipped)


MEASURED: dict[str, list[Any]] = {
    "wanda": [{"prune.wanda": {}}],
    "gptq": [{"quantize.gptq": {}}],
    # Every block needs the same memory; the search of two says as much as that of eight.
    "awq": [{"quantize.awq": {"ratios": 4, "only": ["*.layers.0.*", "*.layers.1.*"]}}],
}
WINDOWS, LENGTH = 16, 512


def _measured(model: Path, steps: list[Any], out: Path, answer: Any) -> None:
    """Run in a process of its own: (planned, reached) resident bytes."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(3, 2048, (WINDOWS, LENGTH), generator=generator)
    run = api.prepare(model, parse(steps), out, data=data)
    run.execute()
    # Not ru_maxrss: that of a new process begins at what the process that started it held.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    answer.send((run.plan.peak_memory, int(status["VmHWM"].split()[0]) * 1024))


@pytest.fixture(scope="module")
def large_llama(tiny_models: Any) -> Path:
    """A Llama of some 55 MB in bfloat16."""
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
    path: Path = tiny_models("llama", "bfloat16", **sizes, num_key_value_heads=4)
    assert 45e6 < Shards(path).nbytes() < 100e6
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is measured with what Linux counts")
@pytest.mark.parametrize("method", MEASURED)
def test_the_memory_that_is_planned_is_the_memory_that_is_used(
    method: str, large_llama: Path, tmp_path: Path
) -> None:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_measured, args=(large_llama, MEASURED[method], tmp_path / "out", theirs))
    process.start()
    theirs.close()
    planned, reached = ours.recv()
    process.join()
    assert reached == pytest.approx(planned, rel=0.15), (planned, reached)
