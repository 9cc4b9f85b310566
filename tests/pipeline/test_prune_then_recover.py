"""Training after pruning: every zero stays, in recipes and for checkpoints that were pruned before."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import modicum
from modicum import api, zoo
from modicum.api.training import transform_loaded
from modicum.cli.app import app
from modicum.cli.failures import explain
from modicum.data.samples import Table
from modicum.data.text import load_text
from modicum.data.windows import token_stream
from modicum.distill import recovery
from modicum.distill.finetune import Finetune
from modicum.distill.logits_kd import LogitsKD
from modicum.distill.recovery import Recovery
from modicum.errors import CheckpointError, PromiseBroken, RecipeConflict
from modicum.evaluate import perplexity
from modicum.formats.manifest import Manifest
from modicum.lossless.byteplanes import BytePlanes
from modicum.models import Anatomy
from modicum.models.dit import DiT, DiTConfig
from modicum.models.dit import save as save_dit
from modicum.pipeline.loading import load_tokenizer
from modicum.pipeline.promises import Zeros, in_words, property_named, recorded
from modicum.pipeline.recipe import Recipe
from modicum.pipeline.run import Silent
from modicum.prune.blocks import Blocks
from modicum.prune.flap import FLAP
from modicum.prune.magnitude import Magnitude
from modicum.prune.wanda import Wanda
from modicum.quantize.gptq import GPTQ
from modicum.quantize.rtn import RTN
from modicum.weights.properties import IntegerGrid, NMPattern, ZeroMask

QUICK: dict[str, Any] = {"steps": 3, "batch": 4, "lr": 1e-2, "final_lr": 1e-3}
HALF, PAIRS = Wanda(sparsity=0.5), Wanda(pattern="2:4")


def recipe(token_file: Path, *steps: Any) -> Recipe:
    return Recipe.of(*steps, source=str(token_file), samples=16, length=32)


def zeros_of(directory: Path) -> dict[str, Tensor]:
    """Where the layers of a checkpoint are zero."""
    model = modicum.load(directory)
    return {layer.name: layer.weight.detach() == 0 for layer in Anatomy.of(model).layers()}


def weights_of(directory: Path) -> dict[str, Tensor]:
    model = modicum.load(directory)
    return {layer.name: layer.weight.detach().clone() for layer in Anatomy.of(model).layers()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


@pytest.fixture(scope="module")
def pruned(tiny_llama: Path, token_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Pruned checkpoints by name; never write there."""
    root = tmp_path_factory.mktemp("pruned")
    for name, step, form in [("half", HALF, "plain"), ("masked", HALF, "modicum"), ("2:4", PAIRS, "modicum")]:
        modicum.compress(tiny_llama, recipe(token_file, step), out=root / name, form=form)
    return lambda name: root / name


class TestPrunedCheckpoints:
    @pytest.mark.parametrize("lora", [None, 2])
    @pytest.mark.parametrize("name", ["half", "masked", "2:4"])
    def test_zeros_stay_in_the_form_that_they_came_in(
        self, name: str, lora: int | None, pruned: Any, tiny_llama: Path, tokens: Tensor, tmp_path: Path
    ) -> None:
        step, data = LogitsKD(**QUICK, lora=lora), Table({"input_ids": tokens})
        made = api.recover(pruned(name), Recipe.of(step), tmp_path / "out", teacher=tiny_llama, data=data)
        before, after = Manifest.read(pruned(name)), Manifest.read(tmp_path / "out")
        assert same(zeros_of(pruned(name)), zeros_of(tmp_path / "out"))
        assert not same(weights_of(pruned(name)), weights_of(tmp_path / "out"))
        assert after.promises == before.promises
        assert after.forms() == before.forms()
        sizes = ("nbytes", "sparsity", "bits_per_weight", "role", "block")
        for layer, record in before.layers.items():
            assert {key: after.layers[layer][key] for key in sizes} == {key: record[key] for key in sizes}
            assert "weight_error" not in after.layers[layer]
        assert [next(iter(step)) for step in after.recipe["steps"]] == ["distill.logits_kd"]
        assert after.history == [{"recipe": before.recipe, "source": before.source}]
        assert made.notes["distill.logits_kd"]["steps"] == 3

    def test_what_is_stored_is_what_was_trained(
        self, pruned: Any, tiny_llama: Path, tokens: Tensor, tmp_path: Path
    ) -> None:
        how, data = Recipe.of(Finetune(**QUICK, lora=2)), Table({"input_ids": tokens})
        api.recover(pruned("half"), how, tmp_path / "out", data=data)
        model = modicum.load(pruned("half"), dtype=torch.float32)
        promised = recorded(Manifest.read(pruned("half")))
        transform_loaded(model, how, data, promised=promised)
        expected = {layer.name: layer.weight.detach().bfloat16() for layer in Anatomy.of(model).layers()}
        assert same(weights_of(tmp_path / "out"), expected)

    def test_a_pattern_opens_as_before(self, pruned: Any, tokens: Tensor, tmp_path: Path) -> None:
        data = Table({"input_ids": tokens})
        api.recover(pruned("2:4"), Recipe.of(Finetune(**QUICK)), tmp_path / "out", data=data)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        for layer in Anatomy.of(model).layers():
            assert int((layer.weight != 0).unflatten(1, (-1, 4)).sum(-1).max()) <= 2
        assert Manifest.read(tmp_path / "out").promises == Manifest.read(pruned("2:4")).promises

    def test_a_later_run_keeps_the_zeros(self, pruned: Any, token_file: Path, tmp_path: Path) -> None:
        modicum.compress(pruned("half"), recipe(token_file, GPTQ(group_size=32)), out=tmp_path / "a")
        for name, mask in zeros_of(pruned("half")).items():
            assert bool((weights_of(tmp_path / "a")[name][mask] == 0).all())
        manifest = Manifest.read(tmp_path / "a")
        assert {"a 4-bit integer grid", "an exact zero mask"} == set(next(iter(manifest.promises.values())))
        assert len(manifest.history) == 1

    def test_layers_that_a_later_run_leaves_alone_stay_known(self, pruned: Any, tmp_path: Path) -> None:
        modicum.compress(pruned("half"), RTN(only=("q",), group_size=32), out=tmp_path / "a")
        before, after = Manifest.read(pruned("half")), Manifest.read(tmp_path / "a")
        untouched = [name for name in before.layers if not name.endswith("q_proj")]
        assert all(after.layers[name] == before.layers[name] for name in untouched)
        assert all(after.promises[name] == before.promises[name] for name in untouched)


class TestRecipes:
    def test_prune_recover_quantize(
        self, tiny_llama: Path, token_file: Path, tokens: Tensor, tmp_path: Path
    ) -> None:
        steps = [PAIRS, LogitsKD(**QUICK), GPTQ(group_size=32)]
        data = Table({"input_ids": tokens})
        made = api.prepare(tiny_llama, recipe(token_file, *steps), tmp_path / "all", data=data).execute()
        api.prepare(tiny_llama, recipe(token_file, *steps[:2]), tmp_path / "two", data=data).execute()
        dense, whole = weights_of(tmp_path / "two"), weights_of(tmp_path / "all")
        for name, mask in zeros_of(tmp_path / "two").items():
            assert mask.unflatten(1, (-1, 4)).sum(-1).min() >= 2
            assert bool((whole[name][mask] == 0).all())
            assert (whole[name] - dense[name]).norm() < 0.3 * dense[name].norm()
        promises = {"a 2:4 pattern", "an exact zero mask", "a 4-bit integer grid"}
        assert all(set(words) == promises for words in made.promises.values())
        assert [next(iter(step)) for step in made.recipe["steps"]] == [step.name for step in steps]
        assert made.source["model"] == tiny_llama.name
        assert made.history == []
        assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []

    def test_one_recipe_or_two_runs(
        self, tiny_llama: Path, pruned: Any, token_file: Path, tokens: Tensor, tmp_path: Path
    ) -> None:
        data, step = Table({"input_ids": tokens}), Finetune(**QUICK)
        modicum.compress(tiny_llama, recipe(token_file, HALF, step), out=tmp_path / "one", data=data)
        api.recover(pruned("half"), Recipe.of(step), tmp_path / "two", data=data)
        assert same(weights_of(tmp_path / "one"), weights_of(tmp_path / "two"))

    @pytest.mark.parametrize("lora", [None, 2])
    def test_a_killed_run_ends_with_the_same_bytes(
        self,
        lora: int | None,
        tiny_llama: Path,
        tokens: Tensor,
        token_file: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        usual, often = Recovery._schedule, {"save_every": 2}
        monkeypatch.setattr(Recovery, "_schedule", lambda m, seed: usual(m, seed).model_copy(update=often))

        class Stops(Silent):
            def __init__(self, where: str) -> None:
                self.where = where

            def learning(self, text: str) -> None:
                if self.where in text:
                    raise KeyboardInterrupt

            def finished(self, block: int) -> None:
                if self.where == f"block {block}":
                    raise KeyboardInterrupt

        steps = recipe(token_file, HALF, Finetune(**QUICK, lora=lora), RTN(group_size=32))

        def run(name: str, progress: Silent) -> dict[str, Tensor]:
            data = Table({"input_ids": tokens})
            modicum.compress(tiny_llama, steps, out=tmp_path / name, data=data, progress=progress)
            return load_file(tmp_path / name / "model.safetensors")

        whole = run("whole", Silent())
        for where in ("block 1", "step 3/3"):
            with pytest.raises(KeyboardInterrupt):
                run("killed", Stops(where))
        blocks = tmp_path / "killed.partial" / "blocks"
        assert (blocks / "stage-0" / tiny_llama.name / "modicum.json").is_file()
        assert [path.name for path in (blocks / "step-0").iterdir()] == ["step-00000002"]
        assert same(run("killed", Silent()), whole)

    def test_a_loaded_model(self, tiny_llama: Path, tokens: Tensor) -> None:
        model = modicum.load(tiny_llama, dtype=torch.float32)
        steps = [PAIRS, Finetune(**QUICK, lora=2), Magnitude(sparsity=0.6)]
        modicum.compress(model, steps, data=Table({"input_ids": tokens}))
        for layer in Anatomy.of(model).layers():
            assert int((layer.weight != 0).unflatten(1, (-1, 4)).sum(-1).max()) <= 2
            assert (layer.weight == 0).float().mean() >= 0.59

    def test_models_that_draw_classes(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        sizes = DiTConfig(input_size=8, patch_size=4, in_channels=1, hidden_size=32, depth=2, num_heads=2,
                          num_classes=10, pixel_space=True)  # fmt: skip
        dit = save_dit(DiT(sizes), tmp_path / "tiny-dit", half=True)
        for form in ("plain", "modicum"):
            steps = [Magnitude(pattern="2:4"), Finetune(**QUICK)]
            made = modicum.compress(dit, steps, out=tmp_path / form, form=form)
            assert bool(made.forms()) is (form == "modicum")
            assert all(
                int(mask.unflatten(1, (-1, 4)).sum(-1).min()) >= 2
                for mask in zeros_of(tmp_path / form).values()
            )
        again = api.recover(tmp_path / "modicum", Recipe.of(Finetune(**QUICK)), tmp_path / "again")
        assert again.promises == made.promises
        assert same(zeros_of(tmp_path / "modicum"), zeros_of(tmp_path / "again"))


@pytest.mark.parametrize("lora", [None, 2])
@pytest.mark.parametrize("step", [FLAP(ratio=0.3, samples=8, length=16), Blocks(keep=(0, 2))])
def test_narrow_and_shallow_models(
    step: Any, lora: int | None, tiny_llama: Path, tokens: Tensor, tmp_path: Path
) -> None:
    data = Table({"input_ids": tokens})
    modicum.compress(tiny_llama, step, out=tmp_path / "cut", data=tokens)
    how = Recipe.of(LogitsKD(**QUICK, lora=lora))
    api.recover(tmp_path / "cut", how, tmp_path / "better", teacher=tiny_llama, data=data)
    before, after = Manifest.read(tmp_path / "cut"), Manifest.read(tmp_path / "better")
    assert (after.shapes, after.attributes) == (before.shapes, before.attributes)
    shapes = [{n: w.shape for n, w in weights_of(tmp_path / at).items()} for at in ("cut", "better")]
    assert shapes[0] == shapes[1]
    assert not same(weights_of(tmp_path / "cut"), weights_of(tmp_path / "better"))


def test_narrow_and_masked_at_once(
    tiny_llama: Path, tokens: Tensor, token_file: Path, tmp_path: Path
) -> None:
    steps = recipe(token_file, FLAP(ratio=0.3, samples=8, length=16), HALF, Finetune(**QUICK))
    data = Table({"input_ids": tokens})
    made = modicum.compress(tiny_llama, steps, out=tmp_path / "a", data=data, form="modicum")
    assert made.shapes
    assert {spec["kind"] for spec in made.forms().values()} == {"masked"}
    assert all(0.4 < mask.float().mean() <= 0.5 for mask in zeros_of(tmp_path / "a").values())


@pytest.mark.parametrize("lora", [None, 8])
def test_nano_lm_recovers(lora: int | None) -> None:
    directory = zoo.path("nano-lm")
    tokenizer = load_tokenizer(directory)
    held_out = token_stream(load_text(None, "heldout"), tokenizer, 256)
    stream = token_stream(load_text(None, "train")[:20], tokenizer, 32 * 64)
    model = modicum.load(directory, dtype=torch.float32)
    modicum.compress(model, Magnitude(pattern="2:4"))
    before, masks = (
        perplexity(model, held_out, 128).ppl,
        [at.weight == 0 for at in Anatomy.of(model).layers()],
    )
    promised = {layer.name: frozenset({ZeroMask(), NMPattern(2, 4)}) for layer in Anatomy.of(model).layers()}
    data = Table({"input_ids": stream.view(32, 64)})
    how = Recipe.of(Finetune(steps=4, batch=4, lr=1e-3, final_lr=1e-3, lora=lora))
    transform_loaded(model, how, data, promised=promised)
    assert perplexity(model, held_out, 128).ppl < before
    for mask, layer in zip(masks, Anatomy.of(model).layers(), strict=True):
        assert torch.equal(layer.weight == 0, mask)


class TestCommand:
    def test_recover_with_lora(
        self,
        pruned: Any,
        tiny_llama: Path,
        token_file: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        out = tmp_path / "out"
        line = ["recover", str(pruned("2:4")), "--method", "distill.logits_kd", "--teacher", str(tiny_llama)]
        line += ["--set", "steps=2", "--set", "batch=4", "--lora", "2", "--data", str(token_file)]
        assert explain(app, [*line, "--out", str(out), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["steps"] == 2
        assert Manifest.read(out).recipe["steps"][0]["distill.logits_kd"]["lora"] == 2
        assert same(zeros_of(pruned("2:4")), zeros_of(out))
        assert explain(app, [*line, "--out", str(out)]) == 2
        assert "exists" in capsys.readouterr().err


class TestRefusals:
    @pytest.mark.parametrize("form", ["modicum", "plain"])
    def test_quantized_weights(self, form: Any, tiny_llama: Path, tokens: Tensor, tmp_path: Path) -> None:
        modicum.compress(tiny_llama, RTN(group_size=32), out=tmp_path / "q", form=form)
        with pytest.raises(CheckpointError, match="quantized weights") as refusal:
            api.recover(
                tmp_path / "q",
                Recipe.of(Finetune(**QUICK)),
                tmp_path / "a",
                data=Table({"input_ids": tokens}),
            )
        assert "before it is quantized" in refusal.value.hint

    def test_weights_that_are_coded(self, tiny_llama: Path, tokens: Tensor, tmp_path: Path) -> None:
        modicum.compress(tiny_llama, BytePlanes(), out=tmp_path / "coded")
        with pytest.raises(CheckpointError, match="coded without loss") as refusal:
            api.recover(
                tmp_path / "coded",
                Recipe.of(Finetune(**QUICK)),
                tmp_path / "a",
                data=Table({"input_ids": tokens}),
            )
        assert "--plain" in refusal.value.hint

    def test_recovery_after_quantizing(self, tiny_llama: Path, tmp_path: Path) -> None:
        with pytest.raises(
            RecipeConflict, match=r"integer grid, which distill\.finetune would break"
        ) as refusal:
            modicum.compress(tiny_llama, [HALF, RTN(), Finetune(**QUICK)], out=tmp_path / "a")
        assert refusal.value.hint.startswith(
            "This order works: prune.wanda then distill.finetune then quantize"
        )

    def test_what_would_break_the_zeros(self, pruned: Any, tmp_path: Path) -> None:
        with pytest.raises(RecipeConflict, match=r"the model leaves .*prune\.blocks would break") as refusal:
            modicum.compress(pruned("half"), Blocks(keep=(0,)), out=tmp_path / "a")
        assert "original" in refusal.value.hint

    def test_a_broken_promise_is_noticed(
        self, pruned: Any, tokens: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(recovery, "held_zeros", lambda layers: nullcontext())
        with pytest.raises(PromiseBroken, match=r"After distill\.finetune, model\.layers\.0"):
            api.recover(
                pruned("half"),
                Recipe.of(Finetune(**QUICK)),
                tmp_path / "a",
                data=Table({"input_ids": tokens}),
            )
        assert not (tmp_path / "a").exists()

    def test_weights_that_are_not_what_is_promised(self, pruned: Any) -> None:
        anatomy = Anatomy.of(modicum.load(pruned("half")))
        with pytest.raises(CheckpointError, match="promises a 1:4 pattern"):
            Zeros(anatomy, {"model.layers.0.mlp.up_proj": frozenset({ZeroMask(), NMPattern(1, 4)})})

    def test_layers_first_in_many_processes(
        self, tiny_llama: Path, tokens: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(RecipeConflict, match="Many processes"):
            modicum.compress(
                tiny_llama,
                [Magnitude(), Finetune(**QUICK)],
                out=tmp_path / "a",
                data=Table({"input_ids": tokens}),
            )


@pytest.mark.parametrize("held", [ZeroMask(), NMPattern(2, 4), NMPattern(4, 8), IntegerGrid(3)])
def test_a_property_is_known_by_its_words(held: Any) -> None:
    assert property_named(held.name) == held
    words = in_words({"a": frozenset({held})})
    assert recorded(Manifest(promises=words)) == {"a": frozenset({held})}
    assert property_named("something newer") is None
