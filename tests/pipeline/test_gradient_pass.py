"""Gradients of a checkpoint on disk: the same as in memory, and for any history of kills."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from modicum import api
from modicum.formats.manifest import Manifest
from modicum.formats.shards import Shards
from modicum.models import Anatomy
from modicum.pipeline import gradients
from modicum.pipeline.gradients import GradientPass, file_bytes, loaded_gradients
from modicum.pipeline.loading import load_model
from modicum.pipeline.source import Source
from modicum.prune.pruner_zero import PrunerZero

STEPS: list[Any] = [{"prune.pruner_zero": {"skip": ["*.layers.0.*"]}}]


class Stopped(BaseException):
    """Stands for a kill."""


def passed(folder: Path, model: Path, tokens: torch.Tensor, step: PrunerZero) -> dict[str, torch.Tensor]:
    """What a whole pass leaves, by layer."""
    GradientPass(Source.open(model), [step], tokens, folder).collect()
    files = sorted(folder.glob("*.gradients.safetensors"))
    return {name: Shards(file).read(name) for file in files for name in Shards(file).names()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_disk_equals_in_memory(dtype: str, tiny_models: Any, tokens: torch.Tensor, tmp_path: Path) -> None:
    model = tiny_models("llama", dtype)
    tokens = tokens[:4]
    found = passed(tmp_path, model, tokens, PrunerZero())
    loaded = load_model(model, None, "cpu")
    expected = loaded_gradients(Anatomy.of(loaded), [PrunerZero()], [tokens])
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        tolerance = 1e-4 if dtype == "float32" else 0.05
        assert float((gradient - expected[name]).norm()) <= tolerance * float(expected[name].norm())


def test_a_stop_at_any_file_is_taken_up(
    tiny_models: Any, tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = passed(tmp_path / "whole", tiny_models("llama"), tokens[:2], PrunerZero())
    write, stops = gradients.write_tensors, 0
    for step in range(1, 40, 4):
        folder, written = tmp_path / str(step), [0]

        def stopping(file: Path, values: Any, written: list[int] = written, step: int = step) -> None:
            for after in (False, True):
                written[0] += 1
                if written[0] == step:
                    raise Stopped
                if not after:
                    write(file, values)

        with monkeypatch.context() as patch:
            patch.setattr(gradients, "write_tensors", stopping)
            try:
                passed(folder, tiny_models("llama"), tokens[:2], PrunerZero())
                break
            except Stopped:
                stops += 1
        found = passed(folder, tiny_models("llama"), tokens[:2], PrunerZero())
        assert all(torch.equal(found[name], whole[name]) for name in whole), step
    assert stops > 3


def test_runs_take_gradients_of_the_dense_model(
    tiny_models: Any, tokens: torch.Tensor, tmp_path: Path
) -> None:
    model = tiny_models("llama")
    api.prepare(model, STEPS, tmp_path / "disk", data=tokens).execute()
    loaded = api.compress(load_model(model, None, "cpu"), STEPS, data=tokens)
    written = load_model(tmp_path / "disk", None, "cpu").state_dict()
    for layer in Anatomy.of(loaded).layers():
        dense, name = layer.weight, f"{layer.name}.weight"
        assert (dense == 0).float().mean().item() == (0.0 if ".layers.0." in name else 0.5)
        assert ((written[name] == 0) == (dense == 0)).float().mean() > 0.999, name
    assert [entry.name for entry in tmp_path.iterdir()] == ["disk"]
    assert all("note" not in record for record in Manifest.read(tmp_path / "disk").layers.values())


def test_the_same_bytes_after_a_stop_within_the_sweep(
    tiny_models: Any, tokens: torch.Tensor, tmp_path: Path, toolbox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [{"prune.pruner_zero": {"metric": "gblm"}}]
    api.prepare(tiny_models("llama"), steps, tmp_path / "whole", data=tokens).execute()
    add, calls = GradientPass.add_to, [0]

    def stopping(self: Any, calibrated: Any) -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise Stopped
        add(self, calibrated)

    with monkeypatch.context() as patch:
        patch.setattr(GradientPass, "add_to", stopping)
        with pytest.raises(Stopped):
            api.prepare(tiny_models("llama"), steps, tmp_path / "out", data=tokens).execute()
        kept = sorted(file.name for file in (tmp_path / "out.partial/blocks/gradients").iterdir())
        assert kept == ["00000.wanted.safetensors", *(f"0000{i}.gradients.safetensors" for i in (1, 2))]
    api.prepare(tiny_models("llama"), steps, tmp_path / "out", data=tokens).execute()
    assert toolbox.hashes(tmp_path / "out") == toolbox.hashes(tmp_path / "whole")


def test_the_files_are_as_large_as_planned(
    tiny_models: Any, tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, sizes, source = gradients.write_tensors, [0], Source.open(tiny_models("llama"))

    def weighed(file: Path, values: Any) -> None:
        write(file, values)
        sizes.append(sum(f.stat().st_size for f in tmp_path.iterdir()))

    monkeypatch.setattr(gradients, "write_tensors", weighed)
    GradientPass(source, [PrunerZero()], tokens, tmp_path).collect()
    planned = file_bytes(source, [PrunerZero()], tokens.numel(), 64)
    assert planned < max(sizes) < planned + 5_000  # headers
    assert file_bytes(source, [PrunerZero(metric="wanda")], tokens.numel(), 64) == 0


def test_the_plan_knows_of_them(tiny_models: Any) -> None:
    plans = [
        api.plan(tiny_models("llama"), [{"prune.pruner_zero": {"metric": metric}}])
        for metric in ("magnitude", "wanda", "pruner_zero")
    ]
    assert [plan.tokens > 0 for plan in plans] == [False, True, True]
    assert plans[1].scratch < plans[2].scratch
