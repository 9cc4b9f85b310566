"""DiT, SiT and MAR through the pipeline: depth, recovery and layers in one recipe, written, opened, drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import modicum
from modicum import api
from modicum.data.samples import Table
from modicum.errors import CheckpointError, InvalidSetting, RecipeConflict, UnusableData
from modicum.formats.manifest import Manifest
from modicum.models import Anatomy
from modicum.models.class_models import ClassModel, save_class_model
from modicum.models.dit import DiT, DiTConfig
from modicum.models.mar import MAR, MARConfig
from modicum.trainer.objectives import objective_of
from modicum.trainer.questions import passes
from modicum.weights.packed import PackedWeight

DIT = DiTConfig(input_size=4, in_channels=2, hidden_size=16, depth=4, num_heads=2, num_classes=3)
SIT = DIT.model_copy(update={"kind": "sit"})
MASKED = MARConfig(
    img_size=8,
    vae_stride=2,
    vae_embed_dim=2,
    encoder_embed_dim=16,
    encoder_depth=2,
    encoder_num_heads=2,
    decoder_embed_dim=24,
    decoder_depth=2,
    decoder_num_heads=2,
    class_num=3,
    buffer_size=2,
    diffloss_d=1,
    diffloss_w=8,
)
MODELS: dict[str, Callable[[], ClassModel]] = {
    "dit": lambda: DiT(DIT),
    "sit": lambda: DiT(SIT),
    "mar": lambda: MAR(MASKED),
}
TRAINED = {"steps": 2, "batch": 4}
RECIPE = {
    "steps": [
        {"diffusion.tinyfusion": {**TRAINED, "rank": 2}},
        {"distill.masked_kd": TRAINED},
        {"quantize.gptq": {"bits": 4, "group_size": 8}},
    ],
    "calibration": {"samples": 6},
}


def build(kind: str) -> ClassModel:
    """A model whose every parameter matters."""
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def latents(count: int = 12, classes: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x0 = torch.randn(count, 2, 4, 4, generator=generator)
    return {"x0": x0, "x0_flipped": x0.flip(-1).contiguous(), "y": torch.arange(count) % classes}


def samples() -> Table:
    tensors = latents()
    return Table({"x0": tensors["x0"], "y": tensors["y"]})


def answer(model: ClassModel) -> Tensor:
    """What a model says of one batch of questions."""
    with torch.no_grad():
        return passes(model, objective_of(model), samples(), 12, seed=5)[0]()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "latents.safetensors"
    save_file(latents(), file)
    return file


@pytest.mark.parametrize("kind", MODELS)
class TestEveryKind:
    def test_depth_recovery_and_layers_in_one_recipe(self, kind: str, rows: Path, tmp_path: Path) -> None:
        original = save_class_model(build(kind), tmp_path / "model")
        recipe = {**RECIPE, "calibration": {"source": str(rows), "samples": 6}}
        manifest = modicum.compress(original, recipe, out=tmp_path / "small")
        assert isinstance(manifest, Manifest)
        assert manifest.notes["diffusion.tinyfusion"]["of_blocks"] == 4
        model: Any = modicum.load(tmp_path / "small")
        layers = list(Anatomy.of(model).layers())
        assert model.config.depth == len(Anatomy.of(model).blocks) == 2
        assert all(isinstance(layer.module, PackedWeight) for layer in layers)
        assert set(manifest.forms()) == {layer.name for layer in layers}
        few = {"iterations": 2} if kind == "mar" else {}
        drawn = model.generate([0, 2], seed=1, steps=2, **few)
        assert drawn.shape == (2, 2, 4, 4)
        assert drawn.isfinite().all()
        with pytest.raises(CheckpointError, match="quantized weights"):
            modicum.compress(tmp_path / "small", "prune.oracle", out=tmp_path / "again")

    def test_what_is_on_disk_computes_what_memory_does(self, kind: str, tmp_path: Path) -> None:
        """On disk, packed and plain, and in memory: one result."""
        original = save_class_model(build(kind), tmp_path / "model")
        recipe = {"steps": [{"quantize.gptq": {"bits": 4, "group_size": 8}}], "calibration": {"samples": 6}}
        loaded: Any = modicum.load(original)
        before = answer(loaded)
        api.compress(loaded, recipe, data=samples())
        expected = answer(loaded)
        for form in ("auto", "plain"):
            modicum.compress(original, recipe, out=tmp_path / form, data=samples(), form=form)
            opened: Any = modicum.load(tmp_path / form)
            torch.testing.assert_close(answer(opened), expected, atol=1e-4, rtol=1e-4)
        assert (before - expected).abs().max() > 1e-3
        sizes = [(tmp_path / form / "model.safetensors").stat().st_size for form in ("auto", "plain")]
        assert sizes[0] < sizes[1]

    def test_methods_without_data_need_none(self, kind: str, tmp_path: Path) -> None:
        original = save_class_model(build(kind), tmp_path / "model")
        manifest = modicum.compress(original, "prune.magnitude", out=tmp_path / "zeros")
        assert isinstance(manifest, Manifest)
        assert manifest.forms() == {}
        pruned = Anatomy.of(modicum.load(tmp_path / "zeros"))
        for layer in pruned.layers():
            assert (layer.weight == 0).float().mean() == pytest.approx(0.5, abs=0.02)
            assert manifest.layers[layer.name]["sparsity"] == pytest.approx(0.5, abs=0.02)
        modicum.compress(original, "prune.magnitude", out=tmp_path / "packed", form="modicum")
        again = list(Anatomy.of(modicum.load(tmp_path / "packed")).layers())
        assert all(torch.equal(a.weight, b.weight) for a, b in zip(again, pruned.layers(), strict=True))

    def test_half_precision_stays_half(self, kind: str, tmp_path: Path) -> None:
        original = save_class_model(build(kind), tmp_path / "model", half=True)
        manifest = modicum.compress(original, "quantize.rtn", out=tmp_path / "small")
        assert isinstance(manifest, Manifest)
        stored = load_file(tmp_path / "small" / "model.safetensors")
        floats = {name for name, tensor in stored.items() if tensor.dtype == torch.float32}
        assert floats <= {"pos_embed"}
        for name, record in manifest.layers.items():
            form = [
                tensor for key, tensor in stored.items() if key.startswith(f"{name}.") and "bias" not in key
            ]
            assert record["nbytes"] == sum(tensor.nbytes for tensor in form)
        opened: Any = modicum.load(tmp_path / "small")
        assert answer(opened).isfinite().all()

    def test_a_killed_run_goes_on(
        self, kind: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = save_class_model(build(kind), tmp_path / "model")
        recipe = {**RECIPE, "calibration": {"source": str(rows), "samples": 6}}
        with monkeypatch.context() as patched:
            patched.setattr("modicum.pipeline.classes.save_class_model", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                modicum.compress(original, recipe, out=tmp_path / "small")
        monkeypatch.setattr("modicum.diffusion.tinyfusion.TinyFusion.transform", _interrupt)
        modicum.compress(original, recipe, out=tmp_path / "small")
        assert isinstance(modicum.load(tmp_path / "small"), nn.Module)


def _interrupt(*args: Any, **kwargs: Any) -> None:
    raise KeyboardInterrupt


class TestCalibration:
    def test_a_seam_between_stacks_is_crossed(self) -> None:
        """The statistics of the decoder are those of a model whose encoder is compressed already."""
        inputs: dict[str, list[Tensor]] = {}
        model: Any = build("mar")
        asked = passes(model, objective_of(model), samples(), 12, seed=0)
        recipe = {"steps": [{"quantize.gptq": {"bits": 2, "group_size": 8, "only": ["encoder_blocks.*"]}}]}
        api.compress(model, recipe, data=asked)
        name = "decoder_blocks.0.attn.qkv"
        hook = model.get_submodule(name).register_forward_pre_hook(
            lambda module, args: inputs.setdefault("end to end", []).append(args[0])
        )
        with torch.no_grad():
            asked[0]()
        hook.remove()
        again: Any = build("mar")
        hook = again.get_submodule(name).register_forward_pre_hook(
            lambda module, args: inputs.setdefault("sweep", []).append(args[0])
        )
        both = {"steps": [*recipe["steps"], {"prune.wanda": {"only": [name]}}]}
        api.compress(again, both, data=passes(again, objective_of(again), samples(), 12, seed=0))
        hook.remove()
        torch.testing.assert_close(inputs["sweep"][0], inputs["end to end"][0], atol=1e-5, rtol=1e-4)

    def test_one_recipe_in_memory(self) -> None:
        model: Any = build("dit")
        recipe = {
            "steps": [{"distill.finetune": TRAINED}, {"prune.wanda": {}}],
            "calibration": {"samples": 6},
        }
        api.compress(model, recipe, data=samples())
        assert all((layer.weight == 0).float().mean() > 0.45 for layer in Anatomy.of(model).layers())
        with pytest.raises(RecipeConflict, match="Pass training samples"):
            api.compress(model, recipe, data=[{"x": torch.zeros(1)}])


class TestRefusals:
    @pytest.mark.parametrize(("label", "named"), [(3, "class 3"), (-1, "class -1")])
    def test_a_class_that_the_model_does_not_have(self, label: int, named: str, tmp_path: Path) -> None:
        original = save_class_model(build("sit"), tmp_path / "model")
        tensors = latents()
        tensors["y"][4] = label
        save_file(tensors, tmp_path / "mine.safetensors")
        recipe = {"steps": [{"distill.finetune": TRAINED}]}
        source = {"calibration": {"source": str(tmp_path / "mine.safetensors")}}
        with pytest.raises(UnusableData, match=rf"mine\.safetensors holds pictures of {named}.*0 to 2"):
            modicum.compress(original, {**recipe, **source}, out=tmp_path / "out")
        with pytest.raises(UnusableData, match=named):
            modicum.compress(original, recipe, out=tmp_path / "out", data=Table(tensors))
        assert not (tmp_path / "out").exists()

    def test_pictures_of_another_size(self, tmp_path: Path) -> None:
        original = save_class_model(build("mar"), tmp_path / "model")
        wide = Table({"x0": torch.zeros(4, 2, 8, 8), "y": torch.zeros(4, dtype=torch.long)})
        with pytest.raises(UnusableData, match=r"\[2, 8, 8\]; the model draws \[2, 4, 4\]"):
            modicum.compress(original, "quantize.gptq", out=tmp_path / "out", data=wide)

    def test_formats_of_others(self, tmp_path: Path) -> None:
        original = save_class_model(build("dit"), tmp_path / "model")
        with pytest.raises(InvalidSetting, match="modicum's own"):
            modicum.compress(original, "quantize.rtn", out=tmp_path / "out", form="compressed-tensors")

    def test_text_is_no_data(self, tmp_path: Path) -> None:
        original = save_class_model(build("dit"), tmp_path / "model")
        with pytest.raises(UnusableData, match="draws classes"):
            modicum.compress(original, "quantize.gptq", out=tmp_path / "out")
