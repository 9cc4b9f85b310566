"""Calibration on what the dense model computes, in one forward pass per block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import modicum
from modicum import api
from modicum.errors import OutputExists
from modicum.models import Anatomy
from modicum.models.replay import Replay
from modicum.pipeline.recipe import parse
from modicum.pipeline.workspace import Workspace

DENSE = {"propagate_error": False}
WANDA: dict[str, Any] = {"steps": ["prune.wanda"], "calibration": DENSE}
AWQ: dict[str, Any] = {"steps": [{"quantize.awq": {"group_size": 32}}], "calibration": DENSE}


def norms(model: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    """The norm of every input channel of every linear layer, by plain hooks."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        return lambda module, args: found.update({name: args[0].float().flatten(0, -2).norm(dim=0)})

    hooks = [layer.module.register_forward_pre_hook(hook(layer.name)) for layer in Anatomy.of(model).layers()]
    with torch.no_grad():
        model(tokens)
    for each in hooks:
        each.remove()
    return found


def test_masks_are_those_of_dense_inputs(tiny_llama: Path, tokens: Tensor) -> None:
    dense = modicum.load(tiny_llama, dtype=torch.float32)
    wanted, weights = norms(dense, tokens), {}
    for layer in Anatomy.of(dense).layers():
        scores = layer.weight.abs() * wanted[layer.name]
        kept = scores.argsort(dim=1, stable=True)[:, scores.shape[1] // 2 :]
        weights[layer.name] = torch.zeros_like(scores).scatter_(1, kept, layer.weight.gather(1, kept))
    model = modicum.compress(modicum.load(tiny_llama, dtype=torch.float32), parse(WANDA), data=tokens)
    for layer in Anatomy.of(model).layers():
        assert ((layer.weight != 0) == (weights[layer.name] != 0)).float().mean() > 0.999, layer.name


def test_errors_are_propagated_unless_told_otherwise(
    tiny_llama: Path, tokens: Tensor, tmp_path: Path, toolbox: Any
) -> None:
    api.prepare(tiny_llama, parse(WANDA), tmp_path / "dense", data=tokens).execute()
    api.prepare(tiny_llama, "prune.wanda", tmp_path / "own", data=tokens).execute()
    assert toolbox.hashes(tmp_path / "dense") != toolbox.hashes(tmp_path / "own")


@pytest.mark.parametrize("recipe", [WANDA, AWQ])
def test_a_block_runs_once_per_batch(
    recipe: dict[str, Any], tiny_llama: Path, tokens: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    run_block = Replay.run_block

    def counted(self: Replay, block: Any, hidden: Tensor, batch: int) -> Tensor:
        ran.append(block.index)
        return run_block(self, block, hidden, batch)

    monkeypatch.setattr(Replay, "run_block", counted)
    api.prepare(tiny_llama, parse(recipe), tmp_path / "out", data=tokens).execute()
    assert len(ran) == len(set(ran)) > 1


@pytest.mark.parametrize("recipe", [WANDA, AWQ])
def test_disk_memory_and_offload_agree(
    recipe: dict[str, Any], tiny_llama: Path, tokens: Tensor, tmp_path: Path, toolbox: Any
) -> None:
    api.prepare(tiny_llama, parse(recipe), tmp_path / "disk", data=tokens).execute()
    api.prepare(tiny_llama, parse(recipe), tmp_path / "offload", data=tokens, offload=True).execute()
    assert toolbox.hashes(tmp_path / "disk") == toolbox.hashes(tmp_path / "offload")
    model = modicum.compress(modicum.load(tiny_llama), parse(recipe), data=tokens)
    with torch.no_grad():
        found, again = model(tokens).logits, modicum.load(tmp_path / "disk")(tokens).logits
    torch.testing.assert_close(found, again)


class Stopped(BaseException):
    """Stands for a kill."""


def test_a_killed_run_ends_with_the_same_bytes(
    tiny_llama: Path, tokens: Tensor, tmp_path: Path, toolbox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.prepare(tiny_llama, parse(WANDA), tmp_path / "whole", data=tokens).execute()
    write = Workspace.write_block

    def stopping(self: Workspace, index: int, *rest: Any) -> None:
        write(self, index, *rest)
        raise Stopped

    run = api.prepare(tiny_llama, parse(WANDA), tmp_path / "out", data=tokens)
    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "write_block", stopping)
        with pytest.raises(Stopped):
            run.execute()
    other = api.prepare(tiny_llama, "prune.wanda", tmp_path / "out", data=tokens)
    with pytest.raises(OutputExists):  # an unfinished run of another calibration
        other.execute()
    api.prepare(tiny_llama, parse(WANDA), tmp_path / "out", data=tokens).execute()
    assert toolbox.hashes(tmp_path / "out") == toolbox.hashes(tmp_path / "whole")


def test_the_plan_expects_less_time(tiny_llama: Path) -> None:
    data = {"samples": 512, "length": 64}
    dense = api.plan(tiny_llama, {"steps": ["prune.wanda"], "calibration": {**data, **DENSE}})
    own = api.plan(tiny_llama, {"steps": ["prune.wanda"], "calibration": data})
    assert dense.seconds < own.seconds
