"""Plans with steps over the whole model, and of models that draw classes: what they say of bytes is what happens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import modicum
from modicum import api
from modicum.cli.app import app
from modicum.data.samples import Table
from modicum.errors import CheckpointError, InvalidSetting, RecipeConflict, UnsupportedModel
from modicum.formats.shards import Shards
from modicum.models.cifar_resnet import CifarResNetConfig, CifarResNetForImageClassification
from modicum.models.cifar_resnet import save as save_cifar_resnet
from modicum.models.class_models import ClassModel, save_class_model
from modicum.models.dit import DiT, DiTConfig, save_diffusers
from modicum.models.mar import MAR, MARConfig
from modicum.pipeline.plan import Plan
from modicum.pipeline.whole_plan import WholePlan

DIT = DiTConfig(input_size=4, in_channels=2, hidden_size=16, depth=4, num_heads=2, num_classes=3)
MASKED = MARConfig(
    img_size=8, vae_stride=2, vae_embed_dim=2, encoder_embed_dim=16, encoder_depth=2, encoder_num_heads=2,
    decoder_embed_dim=24, decoder_depth=4, decoder_num_heads=2, class_num=3, buffer_size=2, diffloss_d=1,
    diffloss_w=8,
)  # fmt: skip
RTN = {"quantize.rtn": {"bits": 4, "group_size": 8}}
RECIPES: dict[str, list[Any]] = {
    "depth": ["prune.oracle"],
    "groups": [{"diffusion.tinyfusion": {"steps": 1, "batch": 2, "rank": 1}}],
    "training": [{"distill.finetune": {"steps": 1, "batch": 2}}],
    "twice": [{"prune.blocks": {"keep": [0, 1, 2, 3]}}, {"prune.blocks": {"keep": [1, 2]}}],
    "packed": ["prune.oracle", RTN],
    "some": ["prune.oracle", {"quantize.rtn": {"group_size": 8, "only": ["*.0.mlp.*"]}}],
    "layers": [RTN],
    "masked": ["prune.oracle", "prune.magnitude"],
}


def classes(kind: str, root: Path, half: bool) -> Path:
    torch.manual_seed(0)
    model: ClassModel = MAR(MASKED) if kind == "mar" else DiT(DIT)
    return save_class_model(model, root, half=half)


def rows() -> Table:
    return Table({"x0": torch.randn(4, 2, 4, 4), "y": torch.tensor([0, 1, 2, 0])})


def planned(model: Path, recipe: Any, **options: Any) -> WholePlan:
    plan = api.plan(model, recipe, **options)
    assert isinstance(plan, WholePlan)
    return plan


class TestSizes:
    @pytest.mark.parametrize("name", [name for name in RECIPES if name != "twice"])
    @pytest.mark.parametrize("kind", ["dit", "mar"])
    def test_of_models_that_draw_classes(self, kind: str, name: str, tmp_path: Path) -> None:
        original = classes(kind, tmp_path / "model", half=name != "groups")
        layered = name in ("packed", "some", "layers", "masked")
        for form in ("auto", "plain", "modicum") if layered else ("auto",):
            plan = planned(original, RECIPES[name], form=form)
            modicum.compress(original, RECIPES[name], out=tmp_path / form, form=form, data=rows())
            assert plan.weights_before == Shards(original).nbytes()
            written = Shards(tmp_path / form).nbytes()
            packed_zeros = (
                name == "masked" and form == "modicum"
            )  # which values are zero already is not known
            assert plan.weights_after == pytest.approx(written, rel=0.01 if packed_zeros else 1e-9), form

    @pytest.mark.parametrize("name", ["training", "twice", "packed"])
    @pytest.mark.parametrize("kind", ["llama", "gpt2"])
    def test_of_language_models(self, kind: str, name: str, tiny_models: Any, tmp_path: Path) -> None:
        original = tiny_models(kind, "bfloat16", **{"n_layer" if kind == "gpt2" else "num_hidden_layers": 4})
        data = Table({"input_ids": torch.arange(3, 67).view(4, 16)})
        plan = planned(original, RECIPES[name])
        modicum.compress(original, RECIPES[name], out=tmp_path / "small", data=data)
        assert plan.weights_after == pytest.approx(Shards(tmp_path / "small").nbytes(), rel=0.01)
        assert plan.weights_before == Shards(original).nbytes()

    def test_a_diffusers_directory_is_planned_as_what_it_becomes(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        root = tmp_path / "pipeline"
        root.mkdir()
        (root / "model_index.json").write_text("{}")
        save_diffusers(DiT(DIT), root / "transformer")
        plan = planned(root, ["prune.oracle", RTN])
        modicum.compress(root, ["prune.oracle", RTN], out=tmp_path / "small")
        assert plan.weights_after == Shards(tmp_path / "small").nbytes()

    def test_nothing_is_read_or_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toolbox: Any
    ) -> None:
        def forbidden(self: Any, name: str) -> None:
            raise AssertionError(f"{name} was read")

        original = classes("dit", tmp_path / "model", half=True)
        before = toolbox.hashes(original)
        monkeypatch.setattr(Shards, "read", forbidden)
        planned(original, RECIPES["packed"])
        assert toolbox.hashes(original) == before
        assert [file.name for file in tmp_path.iterdir()] == ["model"]


class TestWhatIsKnown:
    def test_blocks_and_samples_of_every_step(self, tmp_path: Path) -> None:
        steps = [
            {"diffusion.tinyfusion": {"groups": "1:2", "steps": 3, "batch": 4}},
            {"distill.masked_kd": {"steps": 5, "batch": 2}},
            {"quantize.gptq": {"group_size": 8}},
        ]
        recipe = {"steps": steps, "calibration": {"samples": 6}}
        original = classes("mar", tmp_path / "model", half=False)
        plan = planned(original, recipe)
        assert [(step.name, step.samples, step.blocks) for step in plan.steps] == [
            ("diffusion.tinyfusion", 12, (1, 2)), ("distill.masked_kd", 10, (1, 2)),
        ]  # fmt: skip
        assert (plan.tokens, plan.samples) == (0, 6)
        assert plan.loaded == 2 * Shards(original).nbytes()  # float32 on disk; model and teacher
        assert {layer.block for layer in plan.layers} == {0, 2, 3}
        assert plan.unknown == (
            "How long it takes, and what activations need of memory, is known when it runs.",
        )
        assert json.loads(json.dumps(plan.to_dict()))["steps"][0]["blocks"] == [1, 2]

    @pytest.mark.parametrize("step", ["prune.shortgpt", "prune.flux_lite"])
    def test_calibration_decides_between_stacks_but_not_within_one(self, step: str, tmp_path: Path) -> None:
        recipe = [{step: {"keep": 3}}, RTN]
        one = planned(classes("dit", tmp_path / "dit", half=False), recipe)
        assert one.steps[0].blocks == (3,)
        assert one.weights_after is not None
        two = planned(classes("mar", tmp_path / "mar", half=False), recipe)
        assert two.weights_after is None
        assert two.format is None
        assert two.layers == ()
        assert (
            two.unknown[0]
            == f"What {step} leaves of the blocks, and so every size, is known when it has run."
        )

    def test_widths_are_known_when_they_are_cut(self, tmp_path: Path, tiny_llama: Path) -> None:
        torch.manual_seed(0)
        model = CifarResNetForImageClassification(CifarResNetConfig.of_depth(20))
        cifar = save_cifar_resnet(model, tmp_path / "resnet")
        assert planned(cifar, "prune.depgraph").weights_after is None
        plan = planned(tiny_llama, ["prune.flap", "quantize.rtn"])
        assert plan.weights_after is None
        assert plan.layer_steps == ("quantize.rtn",)
        same = planned(cifar, "distill.finetune")
        assert same.weights_after == same.weights_before == Shards(cifar).nbytes()

    def test_which_of_unequal_blocks_go_decides_the_size(self, tiny_models: Any) -> None:
        plan = planned(tiny_models("qwen2_moe"), {"steps": [{"prune.shortgpt": {"keep": 1}}]})
        assert plan.steps[0].blocks == (1,)
        assert plan.weights_after is None
        assert plan.unknown[0] == "The blocks differ in size, so the size depends on which of them go."

    def test_runtime_steps_are_left_out(self, tmp_path: Path) -> None:
        original = classes("dit", tmp_path / "model", half=False)
        assert planned(original, ["prune.oracle", "diffusion.fora"]) == planned(original, "prune.oracle")

    def test_layer_steps_alone_have_the_exact_plan(self, tiny_llama: Path) -> None:
        assert isinstance(api.plan(tiny_llama, "quantize.rtn"), Plan)


class TestRefusals:
    @pytest.mark.parametrize(
        ("recipe", "words"),
        [
            ([{"prune.shortgpt": {"keep": 5}}], "keep 5 blocks of a model that has 4"),
            ([{"prune.blocks": {"keep": [1, 4]}}], "no choice of blocks"),
            ([{"diffusion.tinyfusion": {"groups": "2:3"}}], "cover 3 blocks"),
            (["prune.oracle", {"quantize.rtn": {"only": ["nothing"]}}], "touches no layer"),
            (["prune.oracle", "prune.oracle", "prune.oracle"], "halves the depth"),
        ],
    )
    def test_blocks_that_are_not_there(self, recipe: Any, words: str, tmp_path: Path) -> None:
        with pytest.raises(InvalidSetting, match=words):
            planned(classes("dit", tmp_path / "model", half=False), recipe)

    def test_order_format_and_models(self, tmp_path: Path, tiny_var: Path) -> None:
        original = classes("dit", tmp_path / "model", half=False)
        with pytest.raises(RecipeConflict, match="cannot follow"):
            api.plan(original, [RTN, "prune.oracle"])
        with pytest.raises(InvalidSetting, match="compressed-tensors"):
            api.plan(original, [RTN], form="compressed-tensors")
        with pytest.raises(UnsupportedModel, match="draws images"):
            api.plan(tiny_var, "prune.oracle")
        modicum.compress(original, [RTN], out=tmp_path / "small")
        with pytest.raises(CheckpointError, match="compressed already"):
            api.plan(tmp_path / "small", [RTN])


def test_the_command_says_it_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = classes("dit", tmp_path / "model", half=False)
    app(
        ["plan", str(original), "-m", "prune.shortgpt", "-m", "quantize.rtn", "--set", "group_size=8"],
        standalone_mode=False,
    )
    shown = " ".join(capsys.readouterr().out.split())
    assert "prune.shortgpt (2 blocks, reads 256 samples)" in shown
    assert "quantize.rtn (10 layers)" in shown
    assert "modicum)" in shown
    assert "unknown How long it takes" in shown
    app(["plan", str(original), "-m", "prune.oracle", "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["steps"][0] == {
        "name": "prune.oracle", "samples": 0, "blocks": [2],
    }  # fmt: skip
