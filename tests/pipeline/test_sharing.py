"""A sparsity that layers share: by a table, or by what stands out in the dense model; on disk as in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modicum import api
from modicum.cli.app import app
from modicum.cli.failures import explain
from modicum.errors import UnknownName, UnusableData
from modicum.formats.manifest import Manifest
from modicum.models import Anatomy
from modicum.pipeline import outliers as outlier_pass
from modicum.pipeline.loading import load_model
from modicum.pipeline.memory_run import compress_model
from modicum.pipeline.recipe import parse
from modicum.pipeline.workspace import Workspace
from modicum.prune.magnitude import Magnitude
from modicum.prune.pruner_zero import PrunerZero

OWL: list[Any] = [{"prune.wanda": {"sparsity": 0.6, "allocation": "owl:3:0.1"}}]
TABLE = {"model.layers.0": 0.25, "*.down_proj": 0.75, "model.layers.2.self_attn.q_proj": 0.0}


def zeros_of(model: nn.Module) -> dict[str, float]:
    """The share of zeros of every layer."""
    return {x.name: float((x.weight == 0).float().mean()) for x in Anatomy.of(model).layers()}


def outliers_of(model: nn.Module, tokens: Tensor, multiple: float) -> list[float]:
    """The share of outliers of every block, by plain hooks and numpy."""
    norms: dict[str, Any] = {}

    def hook(name: str) -> Any:
        return lambda module, args: norms.update({name: args[0].double().flatten(0, -2).norm(dim=0).numpy()})

    for layer in Anatomy.of(model).layers():
        layer.module.register_forward_pre_hook(hook(layer.name))
    with torch.no_grad():
        model(tokens)
    found = []
    for block in Anatomy.of(model).blocks:
        scores = [layer.weight.detach().double().abs().numpy() * norms[layer.name] for layer in block.layers]
        flat = np.concatenate([each.ravel() for each in scores])
        found.append(float((flat > multiple * flat.mean()).mean()))
    return found


def test_sparsities_are_those_of_the_formula(tiny_models: Any, tokens: Tensor, tmp_path: Path) -> None:
    directory = tiny_models("llama")
    manifest = api.prepare(directory, OWL, tmp_path / "disk", data=tokens).execute()
    d = np.array(outliers_of(load_model(directory, None, "cpu"), tokens, 3))
    moved = (d - d.min()) * 0.2 / (d.max() - d.min())
    expected = 0.6 - (moved - moved.mean())
    table = manifest.notes["prune.wanda"]["sparsities"]
    assert list(table) == [f"model.layers.{i}" for i in range(3)]
    assert list(table.values()) == pytest.approx(expected, abs=1e-9)
    assert abs(np.mean(list(table.values())) - 0.6) < 1e-6
    for name, share in zeros_of(load_model(tmp_path / "disk", None, "cpu")).items():
        wanted = table[".".join(name.split(".")[:3])]
        assert manifest.layers[name]["target_sparsity"] == pytest.approx(wanted, abs=1e-6)
        columns = 96 if "down" in name else 64
        assert share == pytest.approx(int(wanted * columns) / columns)


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2"])
@pytest.mark.parametrize("method", ["prune.magnitude", "prune.wanda", "prune.sparsegpt"])
def test_disk_and_memory_agree(
    name: str, method: str, tiny_models: Any, tokens: Tensor, tmp_path: Path
) -> None:
    steps = [{method: {"sparsity": 0.5, "allocation": "owl"}}]
    manifest = api.prepare(tiny_models(name), steps, tmp_path / "out", data=tokens).execute()
    model = load_model(tiny_models(name), None, "cpu")
    records = compress_model(model, parse(steps), tokens)
    on_disk, in_memory = zeros_of(load_model(tmp_path / "out", None, "cpu")), zeros_of(model)
    assert on_disk == pytest.approx(in_memory, abs=0.02)
    shares = {name: record["target_sparsity"] for name, record in records.items()}
    assert shares == pytest.approx({n: r["target_sparsity"] for n, r in manifest.layers.items()}, abs=1e-4)
    assert len({*shares.values()}) == 3  # one for each block, experts included
    sizes = [layer.weight.numel() for layer in Anatomy.of(model).layers()]
    assert np.average(list(shares.values()), weights=sizes) == pytest.approx(0.5, abs=1e-6)


def test_layers_that_are_skipped_do_not_count(tiny_models: Any, tokens: Tensor, tmp_path: Path) -> None:
    settings = {"sparsity": 0.5, "allocation": "owl", "skip": ["*.layers.1.*"]}
    run = api.prepare(tiny_models("llama"), [{"prune.magnitude": settings}], tmp_path / "out", data=tokens)
    table = run.execute().notes["prune.magnitude"]["sparsities"]
    assert sorted(table.values()) == pytest.approx([0.42, 0.58])
    assert set(table) == {"model.layers.0", "model.layers.2"}


def test_magnitude_shares_by_outliers_with_data_and_not_without(tiny_models: Any, tokens: Tensor) -> None:
    model = load_model(tiny_models("llama"), None, "cpu")
    steps = [{"prune.magnitude": {"allocation": "owl"}}]
    with pytest.raises(UnusableData, match=r"prune\.magnitude needs calibration data"):
        compress_model(model, parse(steps))
    assert api.plan(tiny_models("llama"), steps).tokens > 0
    assert api.plan(tiny_models("llama"), ["prune.magnitude"]).tokens == 0


def test_a_table_says_what_every_layer_loses(tiny_models: Any, tokens: Tensor, tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    file.write_text(json.dumps(TABLE))
    steps = [{"prune.magnitude": {"sparsity": 0.5, "allocation": str(file)}}]
    run = api.prepare(tiny_models("llama"), steps, tmp_path / "out", form="modicum")
    manifest = run.execute()
    for name, share in zeros_of(load_model(tmp_path / "out", None, "cpu")).items():
        wanted = 0.75 if "down_proj" in name else 0.25 if ".0." in name else 0.5
        wanted = 0.25 if name == "model.layers.0.mlp.down_proj" else wanted  # its block is named
        wanted = 0.0 if name == "model.layers.2.self_attn.q_proj" else wanted
        assert share == pytest.approx(wanted, abs=1e-3), name
        assert manifest.layers[name]["target_sparsity"] == wanted
    written = sum(record["nbytes"] for record in manifest.layers.values())
    assert written == sum(layer.after for layer in run.plan.layers)
    assert run.plan.shares == ("prune.magnitude: 0.0% to 75.0% by layer",)
    again = parse(manifest.recipe)  # the recipe holds the table itself
    assert again == run.recipe
    file.unlink()
    note = manifest.notes["prune.magnitude"]["sparsities"]
    assert note["model.layers.0"] == 0.25
    assert note["model.layers.1.mlp.down_proj"] == 0.75
    other = api.prepare(
        tiny_models("llama"), [{"prune.magnitude": {"allocation": note}}], tmp_path / "note", form="modicum"
    ).execute()
    assert other.files == manifest.files


def test_a_name_that_is_not_there_is_refused_before_anything(tiny_models: Any, tmp_path: Path) -> None:
    steps = [{"prune.magnitude": {"allocation": {"model.layers.7": 0.5}}}]
    for refused in (
        lambda: api.plan(tiny_models("llama"), steps),
        lambda: api.prepare(tiny_models("llama"), steps, tmp_path / "out"),
        lambda: compress_model(load_model(tiny_models("llama"), None, "cpu"), parse(steps)),
    ):
        with pytest.raises(UnknownName, match=r"'model\.layers\.7'"):
            refused()
    assert not list(tmp_path.iterdir())


def test_two_steps_share_each_in_its_own_way(tiny_models: Any, tokens: Tensor, tmp_path: Path) -> None:
    steps = [
        {"prune.pruner_zero": {"sparsity": 0.3, "metric": "gblm", "allocation": "owl"}},
        {"prune.magnitude": {"sparsity": 0.6, "allocation": {"model.layers.1": 0.9}}},
    ]
    manifest = api.prepare(tiny_models("llama"), steps, tmp_path / "out", data=tokens[:4]).execute()
    first, second = (manifest.notes[name]["sparsities"] for name in ("prune.pruner_zero", "prune.magnitude"))
    assert np.mean(list(first.values())) == pytest.approx(0.3)
    assert second == {"model.layers.0": 0.6, "model.layers.1": 0.9, "model.layers.2": 0.6}
    for name, share in zeros_of(load_model(tmp_path / "out", None, "cpu")).items():
        assert share == pytest.approx(0.9 if ".1." in name else 0.6, abs=1e-3)


def test_blocks_and_rows_are_shared_out_too(tiny_models: Any, tokens: Tensor, tmp_path: Path) -> None:
    for pattern in ("16x16", "row"):
        steps = [{"prune.wanda": {"pattern": pattern, "allocation": {"model.layers.0": 0.25}}}]
        manifest = api.prepare(tiny_models("llama"), steps, tmp_path / pattern, data=tokens).execute()
        zeros = zeros_of(load_model(tmp_path / pattern, None, "cpu"))
        assert all(share == pytest.approx(0.25 if ".0." in n else 0.5) for n, share in zeros.items())
        kinds = "16x16 blocks" if pattern == "16x16" else "rows"
        assert f"zeros in 0.25 of its {kinds}" in manifest.promises["model.layers.0.mlp.up_proj"]


class Stopped(BaseException):
    """Stands for a kill."""


def test_a_stop_anywhere_ends_with_the_same_bytes(
    tiny_models: Any, tokens: Tensor, tmp_path: Path, toolbox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_models("llama", "bfloat16")
    steps = [{"prune.wanda": {"sparsity": 0.6, "allocation": "owl", "pattern": "16x16"}}]
    api.prepare(model, steps, tmp_path / "whole", data=tokens).execute()
    measured: list[int] = []
    write_json, write_block = outlier_pass.write_json, Workspace.write_block

    def counting(file: Path, value: Any) -> None:
        measured.append(int(file.stem))
        write_json(file, value)
        if len(measured) == 2:
            raise Stopped

    def stopping(self: Workspace, index: int, *rest: Any) -> None:
        write_block(self, index, *rest)
        if index == 1:
            raise Stopped

    monkeypatch.setattr(outlier_pass, "write_json", counting)
    with pytest.raises(Stopped):
        api.prepare(model, steps, tmp_path / "out", data=tokens).execute()
    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "write_block", stopping)
        with pytest.raises(Stopped):
            api.prepare(model, steps, tmp_path / "out", data=tokens, offload=True).execute()
    api.prepare(model, steps, tmp_path / "out", data=tokens).execute()
    assert measured == [0, 1, 2]  # nothing twice
    assert toolbox.hashes(tmp_path / "out") == toolbox.hashes(tmp_path / "whole")


def test_plans_say_how_the_sparsity_is_shared(tiny_models: Any) -> None:
    (sentence,) = api.plan(tiny_models("llama"), OWL).shares
    assert sentence.startswith("prune.wanda: 60.0% on the whole, blocks up to 20% apart")
    whole = api.plan(tiny_models("llama"), [{"prune.shortgpt": {"keep": 2}}, *OWL])
    assert any("blocks up to 20% apart" in words for words in whole.unknown)
    assert api.plan(tiny_models("llama"), ["prune.wanda"]).shares == ()


def test_the_command_line_tells_the_range(
    tiny_models: Any, token_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [
        "compress", str(tiny_models("llama")), "--method", "prune.wanda", "--set", "sparsity=0.6", "--set",
        "allocation=owl:3:0.1", "--calibration", str(token_file), "--samples", "16", "--length", "32", "--out",
        str(tmp_path / "out"),
    ]  # fmt: skip
    assert explain(app, line) == 0
    table = Manifest.read(tmp_path / "out").notes["prune.wanda"]["sparsities"].values()
    assert f"{min(table):.1%} to {max(table):.1%} by layer" in " ".join(capsys.readouterr().out.split())
    wrong = ["plan", "nano-lm", "--method", "prune.wanda", "--set", "allocation=owls.json"]
    assert explain(app, wrong) == 2
    assert "there is no file 'owls.json'" in " ".join(capsys.readouterr().err.split())


def test_a_score_that_reads_no_data_does_for_its_outliers() -> None:
    assert PrunerZero(metric="magnitude").statistics() == frozenset()
    for step in (PrunerZero(metric="magnitude", allocation="owl"), Magnitude(allocation="owl")):
        assert step.statistics() == {"column_norm"}
        settled = step.sharing({"a": 0.25})
        assert settled.statistics() == settled.of_layer("a").statistics() == frozenset()
        assert [settled.of_layer(name).sparsity for name in "ab"] == [0.25, 0.5]
        assert not step.shared
