"""Recipes that begin with steps over the whole model: what is written, what is resumed, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import modicum
from modicum import api
from modicum.cli.app import app
from modicum.cli.failures import explain
from modicum.data.samples import Table
from modicum.diffusion.tinyfusion import TinyFusion
from modicum.distill.finetune import Finetune
from modicum.distill.masked_kd import MaskedKD
from modicum.errors import (
    CheckpointError,
    InvalidSetting,
    OutputExists,
    RecipeConflict,
    UnsupportedModel,
    UnusableData,
)
from modicum.formats.manifest import Manifest
from modicum.models import Anatomy
from modicum.models.dit import DiT, DiTConfig, load_dit
from modicum.models.dit import save as save_dit
from modicum.pipeline.recipe import Recipe
from modicum.pipeline.run import Run, Silent
from modicum.pipeline.source import Source
from modicum.pipeline.training_data import file_samples
from modicum.prune.blocks import Blocks
from modicum.prune.shortgpt import ShortGPT
from modicum.prune.wanda import Wanda
from modicum.quantize.rtn import RTN

LEARN = TinyFusion(groups="2:3", steps=3, batch=4, rank=2)
HEAL = MaskedKD(steps=3, batch=4)


@pytest.fixture(scope="module")
def dit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random DiT of four blocks that draws the digits, in bfloat16."""
    torch.manual_seed(0)
    sizes = DiTConfig(
        input_size=8, patch_size=4, in_channels=1, hidden_size=32, depth=4, num_heads=2, num_classes=10,
        pixel_space=True,
    )  # fmt: skip
    return save_dit(DiT(sizes), tmp_path_factory.mktemp("dit") / "tiny-dit", half=True)


def stored(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


class TestLanguageModels:
    def test_the_result_opens_without_modicum_and_keeps_its_bits(
        self, tiny_llama: Path, tokens: Tensor, tmp_path: Path
    ) -> None:
        manifest = modicum.compress(tiny_llama, LEARN, out=tmp_path / "small", data=tokens)
        kept = manifest.notes["diffusion.tinyfusion"]["kept_blocks"]
        small = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
        assert (small.config.num_hidden_layers, small.dtype) == (2, torch.bfloat16)
        before, after = stored(tiny_llama), stored(tmp_path / "small")
        for name, value in after.items():
            pieces = name.split(".")
            if pieces[:2] == ["model", "layers"]:
                pieces[2] = str(kept[int(pieces[2])])
            assert torch.equal(value, before[".".join(pieces)])
        assert Manifest.read(tmp_path / "small").source["model"] == tiny_llama.name
        assert [path.name for path in tmp_path.iterdir()] == ["small"]
        assert len(Anatomy.of(modicum.load(tmp_path / "small")).blocks) == 2

    def test_whole_steps_then_one_sweep(self, tiny_llama: Path, tokens: Tensor, tmp_path: Path) -> None:
        steps = Recipe.of(Blocks(keep=(0, 2)), Wanda(), RTN(bits=4, group_size=32), samples=16, length=32)
        file = tmp_path / "tokens.safetensors"
        save_file({"tokens": tokens}, file)
        calibration = steps.calibration.model_copy(update={"source": str(file)})
        steps = steps.model_copy(update={"calibration": calibration})
        modicum.compress(tiny_llama, steps, out=tmp_path / "one")
        modicum.compress(
            tiny_llama, steps.model_copy(update={"steps": steps.steps[:1]}), out=tmp_path / "cut"
        )
        modicum.compress(
            tmp_path / "cut", steps.model_copy(update={"steps": steps.steps[1:]}), out=tmp_path / "two"
        )
        one, two = stored(tmp_path / "one"), stored(tmp_path / "two")
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
        manifest = Manifest.read(tmp_path / "one")
        assert len(manifest.recipe["steps"]) == 3
        assert manifest.notes["prune.blocks"] == {"kept_blocks": [0, 2], "of_blocks": 3}
        assert manifest.source["model"] == tiny_llama.name
        assert manifest.promises
        assert not (tmp_path / "one" / "blocks").exists()

    def test_distillation_in_a_recipe_learns_from_the_original(
        self, tiny_llama: Path, tokens: Tensor, tmp_path: Path
    ) -> None:
        manifest = modicum.compress(tiny_llama, [Blocks(keep=(0, 1)), HEAL], out=tmp_path / "a", data=tokens)
        assert manifest.notes["distill.masked_kd"]["steps"] == 3
        cut, healed = stored(tiny_llama), stored(tmp_path / "a")
        name = "model.layers.0.mlp.up_proj.weight"
        assert healed[name].dtype == torch.bfloat16
        assert not torch.equal(healed[name], cut[name])

    def test_a_killed_run_ends_with_the_same_bytes(
        self, tiny_llama: Path, tokens: Tensor, tmp_path: Path, toolbox: Any
    ) -> None:
        class Stops(Silent):
            def learning(self, text: str) -> None:
                if text.startswith("distill.masked_kd  step 3/3"):
                    raise KeyboardInterrupt

        def run(name: str, progress: Silent) -> dict[str, str]:
            modicum.compress(tiny_llama, [LEARN, HEAL], out=tmp_path / name, data=tokens, progress=progress)
            return {f: h for f, h in toolbox.hashes(tmp_path / name).items() if f.endswith("safetensors")}

        whole = run("whole", Silent())
        with pytest.raises(KeyboardInterrupt):
            run("killed", Stops())
        assert (tmp_path / "killed.partial" / "blocks" / "step-0" / "step-00000003").is_dir()
        assert run("killed", Silent()) == whole
        assert not (tmp_path / "killed.partial").exists()

    def test_an_unfinished_run_of_another_recipe_is_refused(
        self, tiny_llama: Path, tokens: Tensor, tmp_path: Path
    ) -> None:
        class Stops(Silent):
            def learning(self, text: str) -> None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            modicum.compress(tiny_llama, LEARN, out=tmp_path / "a", data=tokens, progress=Stops())
        with pytest.raises(OutputExists, match="unfinished run with another model, recipe"):
            modicum.compress(tiny_llama, Blocks(keep=(0,)), out=tmp_path / "a", data=tokens)

    def test_a_loaded_model_is_changed_in_place(self, tiny_llama: Path, tokens: Tensor) -> None:
        model = modicum.load(tiny_llama, dtype=torch.float32)
        assert modicum.compress(model, ShortGPT(keep=1), data=Table({"input_ids": tokens})) is model
        assert model.config.num_hidden_layers == 1
        with pytest.raises(RecipeConflict, match="read different data"):
            modicum.compress(model, [Blocks(keep=(0,)), RTN()])

    def test_text_is_read_for_the_training(self, tiny_llama: Path, tmp_path: Path) -> None:
        recipe = Recipe.of(Finetune(steps=2, batch=2), source="stdlib", length=16)
        api.recover(tiny_llama, recipe, tmp_path / "tuned")
        assert not torch.equal(
            stored(tmp_path / "tuned")["model.embed_tokens.weight"],
            stored(tiny_llama)["model.embed_tokens.weight"],
        )


class TestDiffusion:
    def test_digits_train_a_model_that_draws_them(self, dit_folder: Path, tmp_path: Path) -> None:
        learn = TinyFusion(groups="1:2", steps=2, batch=8)
        manifest = modicum.compress(dit_folder, [learn, MaskedKD(steps=2, batch=8)], out=tmp_path / "small")
        small = load_dit(tmp_path / "small")
        assert small.config.depth == 2
        assert stored(tmp_path / "small")["blocks.0.mlp.fc1.weight"].dtype == torch.bfloat16
        assert set(manifest.notes) == {"diffusion.tinyfusion", "distill.masked_kd"}
        assert isinstance(modicum.load(tmp_path / "small"), DiT)
        assert Manifest.read(tmp_path / "small").files.keys() == {"model.safetensors"}

    def test_latents_in_a_file_with_their_flips(self, dit_folder: Path, tmp_path: Path) -> None:
        rows = {"x0": torch.zeros(6, 1, 8, 8), "x0_flipped": torch.ones(6, 1, 8, 8), "y": torch.arange(6)}
        save_file(rows, tmp_path / "rows.safetensors")
        batch = file_samples(tmp_path / "rows.safetensors").batches(6, 0)(0)
        assert batch.keys() == {"x0", "y"}
        assert 0 < batch["x0"].mean().item() < 1
        recipe = Recipe.of(Finetune(steps=1, batch=2), source=str(tmp_path / "rows.safetensors"))
        api.recover(dit_folder, recipe, tmp_path / "out")

    def test_a_step_may_teach_what_an_earlier_run_left(self, dit_folder: Path, tmp_path: Path) -> None:
        modicum.compress(dit_folder, Blocks(keep=(0, 3)), out=tmp_path / "cut")
        manifest = api.recover(
            tmp_path / "cut", Recipe.of(MaskedKD(steps=1, batch=4)), tmp_path / "healed", teacher=dit_folder
        )
        assert set(manifest.notes) == {"prune.blocks", "distill.masked_kd"}


class TestCommands:
    def test_compress_and_recover(
        self, dit_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        small, healed = str(tmp_path / "small"), str(tmp_path / "healed")
        line = ["compress", str(dit_folder), "--method", "diffusion.tinyfusion", "--set", "groups=1:2"]
        assert explain(app, [*line, "--set", "steps=2", "--set", "batch=4", "--out", small]) == 0
        shown = capsys.readouterr().out
        assert "diffusion.tinyfusion  step 2/2" in shown
        assert "kept blocks [" in shown
        line = ["recover", small, "--teacher", str(dit_folder), "--set", "steps=2", "--set", "batch=4"]
        assert explain(app, [*line, "--out", healed, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["steps"] == 2


class TestRefusals:
    @pytest.mark.parametrize("steps", [[Wanda(), Blocks(keep=(0,))], [RTN(), ShortGPT()]])
    def test_a_layer_step_first(self, steps: Any, tiny_llama: Path, tmp_path: Path) -> None:
        with pytest.raises(RecipeConflict, match="works on the whole model and cannot follow"):
            modicum.compress(tiny_llama, steps, out=tmp_path / "a")

    def test_compressed_weights_are_not_trained(
        self, tiny_llama: Path, tokens: Tensor, tmp_path: Path
    ) -> None:
        modicum.compress(tiny_llama, RTN(), out=tmp_path / "packed", form="modicum")
        with pytest.raises(CheckpointError, match="no such step can change"):
            modicum.compress(tmp_path / "packed", Blocks(keep=(0,)), out=tmp_path / "a")

    def test_data_of_another_kind(self, dit_folder: Path, tiny_llama: Path, tmp_path: Path) -> None:
        with pytest.raises(UnusableData, match="no data for a model that draws classes"):
            modicum.compress(dit_folder, Recipe.of(LEARN, source="some.txt"), out=tmp_path / "a")
        save_file({"x0_flipped": torch.zeros(2)}, tmp_path / "odd.safetensors")
        with pytest.raises(UnusableData, match="x0_flipped without x0"):
            file_samples(tmp_path / "odd.safetensors")

    def test_groups_of_another_depth(self, tiny_llama: Path, tokens: Tensor, tmp_path: Path) -> None:
        with pytest.raises(InvalidSetting, match="cover 2 blocks; the model has 3"):
            modicum.compress(tiny_llama, TinyFusion(steps=1), out=tmp_path / "a", data=tokens)
        assert not (tmp_path / "a").exists()

    def test_recovery_without_a_teacher_or_by_pruning(self, tiny_llama: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidSetting, match="needs a teacher"):
            api.recover(tiny_llama, Recipe.of(HEAL), tmp_path / "a")
        with pytest.raises(InvalidSetting, match="recovers nothing"):
            api.recover(tiny_llama, Recipe.of(Wanda()), tmp_path / "a")

    def test_a_teacher_of_another_width(
        self, tiny_llama: Path, tiny_models: Any, tokens: Tensor, tmp_path: Path
    ) -> None:
        with pytest.raises(UnsupportedModel, match="hidden_size 32, the student 64"):
            api.recover(
                tiny_llama, Recipe.of(HEAL), tmp_path / "a",
                teacher=tiny_models("llama", hidden_size=32), data=Table({"input_ids": tokens}),
            )  # fmt: skip

    def test_a_run_of_layer_steps_takes_no_other(self, tiny_llama: Path, tmp_path: Path) -> None:
        with pytest.raises(RecipeConflict, match="does not work layer by layer"):
            Run(Source.open(tiny_llama), Recipe.of(LEARN), tmp_path / "a")
