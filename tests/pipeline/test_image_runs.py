"""Image models through the pipeline: their transformer is compressed, the rest is carried along."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import modicum
from modicum.errors import CheckpointError, InvalidSetting, UnsupportedModel
from modicum.formats.manifest import Manifest
from modicum.models import Anatomy
from modicum.models.infinity import Infinity, InfinityConfig
from modicum.models.infinity.files import save as save_infinity
from modicum.models.var import VAR, VAEConfig, VARConfig
from modicum.models.var.files import save as save_var
from modicum.weights.packed import PackedWeight

SIZES = VARConfig(
    num_classes=3,
    depth=2,
    embed_dim=32,
    num_heads=2,
    patch_nums=(1, 2, 3),
    vae=VAEConfig(vocab_size=16, z_channels=4, ch=8, ch_mult=(1, 2), num_res_blocks=1, groupnorm_groups=4),
)


def lively(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter away from its initial value, the closed gates above all."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = lively(VAR(SIZES))
    return save_var(model, tmp_path / "tiny", tensors={"judge.safetensors": {"a": torch.ones(2)}})


def logits(model: torch.nn.Module) -> torch.Tensor:
    """Of all maps of two images at once."""
    inputs = torch.randn(2, SIZES.schedule.total - 1, 4, generator=torch.Generator().manual_seed(3))
    return model.get_submodule("transformer")(torch.tensor([0, 2]), inputs)


def test_rounded_weights_are_written_and_read(directory: Path, tmp_path: Path) -> None:
    """What is read from disk computes what a model rounded in memory computes, packed and plain."""
    before = (directory / "model.safetensors").read_bytes()
    recipe = {"steps": [{"quantize.rtn": {"bits": 8, "group_size": 32}}]}
    expected = logits(modicum.compress(modicum.load(directory), recipe))  # type: ignore[arg-type]
    modicum.compress(directory, recipe, out=tmp_path / "packed")
    modicum.compress(directory, recipe, out=tmp_path / "plain", form="plain")
    packed, plain = modicum.load(tmp_path / "packed"), modicum.load(tmp_path / "plain")
    assert isinstance(packed.get_submodule("transformer.blocks.1.attn.mat_qkv"), PackedWeight)
    assert isinstance(plain.get_submodule("transformer.blocks.1.attn.mat_qkv"), torch.nn.Linear)
    torch.testing.assert_close(logits(packed), expected, atol=1e-4, rtol=0)
    assert packed.generate([0, 2], seed=1).shape == (2, 3, 6, 6)  # type: ignore[operator]
    torch.testing.assert_close(logits(plain), expected, atol=1e-4, rtol=0)
    assert (expected - logits(modicum.load(directory))).abs().max() > 1e-3
    assert (directory / "model.safetensors").read_bytes() == before


def test_masked_weights_are_zero_after_loading(directory: Path, tmp_path: Path) -> None:
    modicum.compress(directory, "prune.magnitude", out=tmp_path / "pruned")
    layers = list(Anatomy.of(modicum.load(tmp_path / "pruned")).layers())
    assert len(layers) == 10
    for layer in layers:
        assert (layer.weight == 0).float().mean() == pytest.approx(0.5, abs=0.01)


def test_what_lies_beside_the_transformer_is_carried_along(directory: Path, tmp_path: Path) -> None:
    (directory / "README.md").write_text("figures of the original")
    (directory / "text_encoder").mkdir()
    (directory / "text_encoder" / "config.json").write_text("{}")
    modicum.compress(directory, "quantize.rtn", out=tmp_path / "out")
    for name in ("vae.safetensors", "judge.safetensors", "text_encoder/config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (directory / name).read_bytes()
    assert not (tmp_path / "out" / "README.md").exists()
    sizes = json.loads((tmp_path / "out" / "config.json").read_text())
    assert VARConfig.from_dict(sizes) == SIZES
    assert Manifest.read(tmp_path / "out").forms().keys() == {
        name.removeprefix("transformer.")
        for name in (layer.name for layer in Anatomy.of(VAR(SIZES)).layers())
    }


def test_infinity_goes_the_same_way(tmp_path: Path) -> None:
    root = Path(__file__).parents[1] / "golden" / "infinity-tiny-2b"
    config = InfinityConfig.from_dict(json.loads((root / "config.json").read_text()))
    torch.manual_seed(0)
    original = save_infinity(lively(Infinity(config)), tmp_path / "tiny")  # type: ignore[arg-type]
    modicum.compress(original, {"steps": [{"quantize.rtn": {"bits": 8}}]}, out=tmp_path / "out")
    before, after = modicum.load(original), modicum.load(tmp_path / "out")
    layers = {layer.name: layer for layer in Anatomy.of(before).layers()}
    compressed = list(Anatomy.of(after).layers())
    assert len(compressed) == len(layers) == 7 * config.depth
    for layer in compressed:
        assert isinstance(layer.module, PackedWeight)
        torch.testing.assert_close(layer.weight, layers[layer.name].weight, atol=0.02, rtol=0)


def test_what_cannot_be_done_with_images_is_said(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="draws images"):
        modicum.compress(directory, "prune.wanda", out=tmp_path / "out")
    with pytest.raises(UnsupportedModel, match="draws images"):
        modicum.compress(directory, "prune.wanda", out=tmp_path / "out", data=torch.zeros(1, 8).long())
    with pytest.raises(InvalidSetting, match="modicum's own"):
        modicum.compress(directory, "quantize.rtn", out=tmp_path / "out", form="compressed-tensors")
    modicum.compress(directory, "quantize.rtn", out=tmp_path / "packed")
    with pytest.raises(CheckpointError, match="compressed already"):
        modicum.compress(tmp_path / "packed", "prune.magnitude", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_form_is_named(directory: Path, tmp_path: Path) -> None:
    modicum.compress(directory, "quantize.rtn", out=tmp_path / "packed")
    file = tmp_path / "packed" / "modicum.json"
    manifest = json.loads(file.read_text())
    manifest["layers"]["blocks.0.attn.proj"]["form"]["shape"] = [32, 64]
    file.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError):
        modicum.load(tmp_path / "packed")
