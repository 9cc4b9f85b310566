"""Recipes that end with runtime steps: what is saved beside the weights, what is refused, and what a reader trusts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import modicum
from modicum.cache.full import Full
from modicum.cache.scalekv import ScaleKV
from modicum.cache.streaming import Streaming
from modicum.diffusion.first_block_cache import FirstBlockCache
from modicum.diffusion.fora import FORA
from modicum.diffusion.taylorseer import TaylorSeer
from modicum.errors import (
    CheckpointError,
    InvalidSetting,
    ModicumError,
    OutputExists,
    RecipeConflict,
    UnsupportedModel,
    UnusableData,
)
from modicum.formats.manifest import Manifest
from modicum.formats.policies import FILE, Policies
from modicum.models.dit import DiT, DiTConfig, save_diffusers
from modicum.models.dit import save as save_dit
from modicum.pipeline.policy_run import PolicyRun
from modicum.pipeline.run import Silent
from modicum.prune.blocks import Blocks
from modicum.prune.wanda import Wanda

HOW: dict[str, Any] = {"labels": [2, 7], "steps": 4, "cfg": 1.5, "sampler": "ddim", "seed": 0}


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory, toolbox: Any) -> Path:
    """A random DiT of four blocks."""
    torch.manual_seed(0)
    sizes = DiTConfig(
        input_size=8, patch_size=4, in_channels=1, hidden_size=24, depth=4, num_heads=2, num_classes=10,
        pixel_space=True,
    )  # fmt: skip
    return save_dit(toolbox.stirred(DiT(sizes)), tmp_path_factory.mktemp("dit") / "tiny-dit")


@pytest.fixture(scope="module")
def made(dit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of its blocks, and a step cache."""
    out = tmp_path_factory.mktemp("made") / "small"
    modicum.compress(dit, [Blocks(keep=(0, 2)), FORA(interval=2)], out=out)
    return out


class TestWhatIsWritten:
    def test_the_policy_lies_beside_the_pruned_weights(self, made: Path) -> None:
        manifest = Manifest.read(made)
        assert [list(step) for step in manifest.recipe["steps"]] == [["prune.blocks"], ["diffusion.fora"]]
        assert manifest.notes["prune.blocks"]["kept_blocks"] == [0, 2]
        assert sorted(file.name for file in made.iterdir()) == [
            "config.json", "model.safetensors", "modicum.json", FILE,
        ]  # fmt: skip
        assert not made.with_name("small.partial").exists()

    def test_what_is_drawn_is_what_the_fitted_policy_draws(self, made: Path) -> None:
        model = modicum.load(made)
        plain = model.generate(**HOW)
        with modicum.saved_policies(made).attach(model):
            saved = model.generate(**HOW)
        with modicum.fit_policy(model, FORA(interval=2)).attach(model):
            assert torch.equal(model.generate(**HOW), saved)
        assert not torch.equal(plain, saved)
        assert torch.equal(model.generate(**HOW), plain)

    def test_without_other_steps_the_weights_are_those_of_the_original(
        self, tiny_var: Path, tmp_path: Path
    ) -> None:
        modicum.compress(tiny_var, ScaleKV(budget="40%", window=4), out=tmp_path / "a")
        for name in ("model.safetensors", "vae.safetensors"):
            assert (tmp_path / "a" / name).read_bytes() == (tiny_var / name).read_bytes()
        (policy,) = modicum.saved_policies(tmp_path / "a").policies
        wanted = modicum.fit_policy(modicum.load(tiny_var), ScaleKV(budget="40%", window=4))
        assert policy.to_json() == wanted.to_json()
        assert "cache.scalekv" in Manifest.read(tmp_path / "a").recipe["steps"][0]

    def test_layers_are_compressed_before_a_policy_is_fitted(self, tiny_var: Path, tmp_path: Path) -> None:
        modicum.compress(tiny_var, ["prune.magnitude", "cache.full"], out=tmp_path / "a")
        weights = load_file(tmp_path / "a" / "model.safetensors")
        assert (weights["blocks.0.ffn.fc1.weight"] == 0).float().mean() == pytest.approx(0.5, abs=0.01)
        assert modicum.saved_policies(tmp_path / "a").described() == ("cache.full",)

    @pytest.mark.parametrize("pipeline", [True, False])
    def test_a_directory_of_diffusers(self, pipeline: bool, tmp_path: Path) -> None:
        torch.manual_seed(0)
        sizes = DiTConfig(input_size=4, hidden_size=16, depth=4, num_heads=2, num_classes=10)
        original = tmp_path / "original"
        if pipeline:
            original.mkdir()
            (original / "model_index.json").write_text("{}")
        weights = save_diffusers(DiT(sizes), original / "transformer" if pipeline else original)
        modicum.compress(original, FORA(interval=2), out=tmp_path / "cached")
        modicum.compress(original, [Blocks(keep=(0, 2)), FORA(interval=2)], out=tmp_path / "small")
        for name, depth in (("cached", 4), ("small", 2)):
            model: Any = modicum.load(tmp_path / name)
            assert model.config.depth == depth
            assert modicum.saved_policies(tmp_path / name).described() == ("diffusion.fora interval=2",)
        (found,) = weights.glob("*.safetensors")
        assert (tmp_path / "cached" / found.name).read_bytes() == found.read_bytes()
        with pytest.raises(UnsupportedModel, match=r"original is a dit model"):
            modicum.compress(original, Full(), out=tmp_path / "a")

    def test_a_killed_run_ends_with_the_same_bytes(
        self, dit: Path, made: Path, tmp_path: Path, toolbox: Any
    ) -> None:
        class Stops(Silent):
            def learning(self, text: str) -> None:
                if text.startswith("diffusion.fora"):
                    raise KeyboardInterrupt

        recipe = [Blocks(keep=(0, 2)), FORA(interval=2)]
        with pytest.raises(KeyboardInterrupt):
            modicum.compress(dit, recipe, out=tmp_path / "small", progress=Stops())
        assert not (tmp_path / "small").exists()
        with pytest.raises(OutputExists, match="unfinished run"):
            modicum.compress(dit, [recipe[0], FORA(interval=3)], out=tmp_path / "small")
        modicum.compress(dit, recipe, out=tmp_path / "small")
        assert toolbox.hashes(tmp_path / "small") == toolbox.hashes(made)

    def test_a_model_without_policies_runs_as_it_is(self, dit: Path) -> None:
        model = modicum.load(dit)
        plain = model.generate(**HOW)
        found = modicum.saved_policies(dit)
        with found.attach(model):
            assert torch.equal(model.generate(**HOW), plain)
        assert found.described() == ()


class TestOrder:
    @pytest.mark.parametrize("after", [Blocks(keep=(0,)), Wanda()])
    def test_a_runtime_step_comes_last(self, after: Any, tmp_path: Path, dit: Path) -> None:
        with pytest.raises(
            RecipeConflict, match=r"cannot follow diffusion\.fora, which is fitted"
        ) as refused:
            modicum.compress(dit, [FORA(), after], out=tmp_path / "a")
        assert refused.value.hint == f"Put {after.name} before diffusion.fora."
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        "pair", [(FORA(), TaylorSeer()), (FORA(), FORA(interval=2)), (Full(), Streaming())]
    )
    def test_two_cannot_decide_the_same(self, pair: Any, tmp_path: Path, dit: Path) -> None:
        with pytest.raises(RecipeConflict, match=f"{pair[0].name} and {pair[1].name} both decide what"):
            modicum.compress(dit, list(pair), out=tmp_path / "a")

    def test_a_model_of_another_kind(
        self, dit: Path, tiny_var: Path, tiny_llama: Path, tmp_path: Path
    ) -> None:
        for model, step in ((tiny_llama, FORA()), (tiny_var, FirstBlockCache()), (dit, Full())):
            with pytest.raises(UnsupportedModel, match=f"{step.name} runs"):
                modicum.compress(model, [Blocks(keep=(0,)), step], out=tmp_path / "a")
        assert not list(tmp_path.iterdir())

    def test_prompts_cannot_be_guessed(self, tiny_infinity: Path, tmp_path: Path) -> None:
        with pytest.raises(UnusableData, match="draws none without prompts"):
            modicum.compress(tiny_infinity, ScaleKV(window=4), out=tmp_path / "a")
        modicum.compress(tiny_infinity, ScaleKV(budget="50%", window=4, drafters=()), out=tmp_path / "a")
        assert len(modicum.saved_policies(tmp_path / "a").policies) == 1

    def test_a_loaded_model_keeps_no_policy(self, dit: Path) -> None:
        with pytest.raises(RecipeConflict, match="leaves a policy and no other weights"):
            modicum.compress(modicum.load(dit), FORA())

    def test_there_is_nothing_to_plan(self, dit: Path) -> None:
        with pytest.raises(RecipeConflict, match="nothing to plan"):
            modicum.api.plan(dit, FORA())

    def test_it_is_a_run_of_its_own_kind(self, dit: Path, tmp_path: Path) -> None:
        run = modicum.api.prepare(dit, FORA(), tmp_path / "a")
        assert isinstance(run, PolicyRun)
        assert run.weights_before == (dit / "model.safetensors").stat().st_size - _header(dit)


def _header(directory: Path) -> int:
    with (directory / "model.safetensors").open("rb") as stream:
        return 8 + int.from_bytes(stream.read(8), "little")


class TestReading:
    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("{", "not valid JSON"),
            ("[" * 100_000, "not valid JSON"),
            ("[]", "no file of policies"),
            ('{"format": "other"}', "no file of policies"),
        ],
    )
    def test_other_files(self, text: str, complaint: str, tmp_path: Path) -> None:
        (tmp_path / FILE).write_text(text)
        with pytest.raises(CheckpointError, match=complaint):
            Policies.read(tmp_path)

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            ({"version": 2}, "version 2"),
            ({"blocks": "2"}, "neither how many blocks"),
            ({"blocks": True}, "neither how many blocks"),
            ({"policies": None}, "neither how many blocks"),
            ({"policies": "diffusion.fora"}, "neither how many blocks"),
            ({"policies": [3]}, "names no method"),
            ({"policies": [{"method": "prune.wanda"}]}, "leaves no policy"),
            ({"policies": [{"method": "diffusion.forra"}]}, "forra"),
            ({"policies": [{"method": "diffusion.fora"}]}, "no step cache policy"),
        ],
    )
    def test_damage(self, change: dict[str, Any], complaint: str, made: Path, tmp_path: Path) -> None:
        good = json.loads((made / FILE).read_text())
        (tmp_path / FILE).write_text(json.dumps({**good, **change}))
        with pytest.raises(CheckpointError, match=complaint):
            Policies.read(tmp_path)

    def test_settings_are_checked(self, made: Path, tmp_path: Path) -> None:
        good = json.loads((made / FILE).read_text())
        good["policies"][0]["settings"]["interval"] = 0
        (tmp_path / FILE).write_text(json.dumps(good))
        with pytest.raises(CheckpointError, match="interval"):
            Policies.read(tmp_path)

    def test_another_depth(self, made: Path, dit: Path) -> None:
        with (
            pytest.raises(InvalidSetting, match="model of 2 blocks, this one has 4"),
            modicum.saved_policies(made).attach(modicum.load(dit)),
        ):
            pass

    def test_another_model(self, made: Path, tiny_var: Path) -> None:
        with pytest.raises(ModicumError), modicum.saved_policies(made).attach(modicum.load(tiny_var)):
            pass
