"""Plans that end with a storage step: small checkpoints are told exactly, large ones from a sample."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import modicum
from modicum import api, zoo
from modicum.cli.app import app
from modicum.errors import InvalidSetting
from modicum.formats.shards import Shards
from modicum.pipeline import storage_plan
from modicum.pipeline.plan import Plan
from modicum.pipeline.storage_plan import StoragePlan
from modicum.pipeline.whole_plan import WholePlan

METHODS = ("lossless.dfloat11", "lossless.byteplanes")


def planned(model: str | Path, recipe: Any) -> StoragePlan:
    plan = api.plan(model, recipe)
    assert isinstance(plan, StoragePlan)
    return plan


@pytest.mark.parametrize("method", METHODS)
def test_a_small_checkpoint_becomes_what_its_plan_says_to_the_byte(
    method: str, tiny_llama: Path, tmp_path: Path
) -> None:
    plan = planned(tiny_llama, method)
    note = modicum.compress(tiny_llama, method, out=tmp_path / "coded").notes[method]
    stored = Shards(tmp_path / "coded")
    assert not plan.estimated
    assert plan.unknown == ()
    assert plan.weights_after == stored.nbytes() < plan.weights_before == Shards(tiny_llama).nbytes()
    assert {g.name: (g.nbytes, g.dense_nbytes) for g in plan.groups} == {
        name: (group["nbytes"], group["dense_nbytes"]) for name, group in note["groups"].items()
    }
    assert plan.bound is not None
    assert plan.bound < plan.weights_after
    assert sum(g.bound * g.weights for g in plan.groups) / note["coded_weights"] == pytest.approx(
        note["bound"], abs=1e-4
    )
    assert plan.rest == 2 * 3 + 1


@pytest.mark.parametrize("method", METHODS)
def test_a_sample_tells_nearly_what_all_weights_tell(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = planned("nano-lm", method)
    monkeypatch.setattr(storage_plan, "SAMPLE", 1 << 17)
    sampled = planned("nano-lm", method)
    assert not exact.estimated
    assert sampled.estimated
    assert all(group.sampled <= (1 << 17) + 8 * 7 for group in sampled.groups)
    assert sampled.weights_after == pytest.approx(exact.weights_after, rel=0.01)
    assert sampled.bound == pytest.approx(exact.bound, rel=0.01)
    assert sampled.unknown


def test_what_cannot_be_coded_is_named_and_counted_as_it_is(tiny_llama: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    shutil.copytree(tiny_llama, odd)
    tensors = load_file(odd / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.inf
    save_file(tensors, odd / "model.safetensors", {"format": "pt"})
    plan = planned(odd, METHODS[0])
    raw = {group.name: group for group in plan.groups if group.raw}
    assert list(raw) == ["model.layers.1"]
    assert raw["model.layers.1"].nbytes == raw["model.layers.1"].dense_nbytes
    modicum.compress(odd, METHODS[0], out=tmp_path / "coded")
    assert plan.weights_after == Shards(tmp_path / "coded").nbytes()


@pytest.mark.parametrize("model", ["nano-dit", "nano-var"])
def test_models_that_draw_are_planned_too(model: str, tmp_path: Path) -> None:
    plan = planned(model, METHODS[0])
    modicum.compress(model, METHODS[0], out=tmp_path / "coded")
    assert not plan.estimated
    assert plan.weights_after == Shards(tmp_path / "coded").nbytes()


def test_a_tied_head_that_is_stored_needs_no_bytes_of_its_own(tiny_models: Any, tmp_path: Path) -> None:
    tied = tmp_path / "tied"
    shutil.copytree(tiny_models("llama", "bfloat16", tie_word_embeddings=True), tied)
    tensors = load_file(tied / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tied / "model.safetensors", {"format": "pt"})
    plan = planned(tied, METHODS[0])
    modicum.compress(tied, METHODS[0], out=tmp_path / "coded")
    assert plan.weights_after == Shards(tmp_path / "coded").nbytes()
    assert plan.rest == 2 * 3 + 1


class TestStepsBefore:
    def test_layer_steps_are_planned_as_they_run_and_sizes_are_estimates(self, tiny_llama: Path) -> None:
        packed = {"quantize.rtn": {"bits": 4, "group_size": 16}}
        plan = planned(tiny_llama, [packed, METHODS[1]])
        assert isinstance(plan.before, Plan)
        assert plan.before.format == "plain"  # what is coded are dense weights
        assert plan.before.weights_after == plan.weights_before
        assert plan.estimated
        assert plan.unknown
        assert plan.weights_after == planned(tiny_llama, METHODS[1]).weights_after
        assert plan.scratch > planned(tiny_llama, METHODS[1]).scratch + plan.before.weights_after - 1

    def test_blocks_that_go_are_not_coded(self, tiny_llama: Path) -> None:
        plan = planned(tiny_llama, [{"prune.blocks": {"keep": [0]}}, METHODS[0]])
        assert isinstance(plan.before, WholePlan)
        assert plan.before.weights_after is not None
        whole = planned(tiny_llama, METHODS[0])
        assert whole.weights_after is not None
        share = plan.before.weights_after / plan.weights_before
        assert plan.weights_after == round(whole.weights_after * share)

    def test_what_nobody_knows_is_not_made_up(self, tiny_llama: Path) -> None:
        plan = planned(tiny_llama, ["prune.flap", METHODS[0]])
        assert plan.weights_after is None
        assert plan.bound is None
        assert json.loads(json.dumps(plan.to_dict()))["weights_after"] is None

    def test_what_the_steps_before_refuse_is_refused(self, tiny_llama: Path) -> None:
        with pytest.raises(InvalidSetting, match="touches no layer"):
            api.plan(tiny_llama, [{"prune.wanda": {"only": ["nothing"]}}, METHODS[0]])


class TestCommand:
    def test_the_table_says_what_is_coded(self, capsys: pytest.CaptureFixture[str]) -> None:
        app(["plan", "nano-lm", "--method", "prune.magnitude", "--method", METHODS[0]], standalone_mode=False)
        printed = " ".join(capsys.readouterr().out.split())
        assert "steps prune.magnitude (42 layers)" in printed
        assert "codes lossless.dfloat11 (4,653,056 weights in 7 groups)" in printed
        assert "rest 13 other tensors stay as they are" in printed
        assert "→ about 6.32 MB (67.8%, bound 66.0%)" in printed

    def test_json_has_every_group(self, tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
        app(["plan", str(tiny_llama), "--method", METHODS[1], "--json"], standalone_mode=False)
        printed = json.loads(capsys.readouterr().out)
        plan = planned(tiny_llama, METHODS[1])
        assert printed["weights_after"] == plan.weights_after
        assert [group["name"] for group in printed["groups"]] == [group.name for group in plan.groups]
        assert printed["before"] is None


def test_a_plan_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(zoo.path("nano-lm").iterdir())
    planned("nano-lm", METHODS[0])
    assert list(tmp_path.iterdir()) == []
    assert sorted(zoo.path("nano-lm").iterdir()) == before
