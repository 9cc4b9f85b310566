"""SiT, MAR and diffusers directories on the command line: compressed, recovered, drawn, converted, exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import modicum
from modicum.cli.app import app
from modicum.cli.failures import explain
from modicum.formats.manifest import Manifest
from modicum.models.dit import DiT, DiTConfig, save_diffusers
from modicum.models.mar import MAR, MARConfig, save

LEARN = ["--set", "steps=2", "--set", "batch=4"]


@pytest.fixture(scope="session")
def tiny_mar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random MAR of four blocks and ten classes whose latents `tiny_vae` decodes; never write there."""
    torch.manual_seed(0)
    model = MAR(
        MARConfig(
            img_size=16, vae_stride=2, patch_size=2, vae_embed_dim=4, encoder_embed_dim=16, encoder_depth=2,
            encoder_num_heads=2, decoder_embed_dim=16, decoder_depth=2, decoder_num_heads=2, class_num=10,
            buffer_size=2, diffloss_d=1, diffloss_w=8,
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return save(model, tmp_path_factory.mktemp("classes") / "tiny-mar")


@pytest.fixture(scope="session")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise as training data of the two."""
    file = tmp_path_factory.mktemp("classes") / "latents.safetensors"
    generator = torch.Generator().manual_seed(0)
    save_file({"x0": torch.randn(12, 4, 8, 8, generator=generator), "y": torch.arange(12) % 10}, file)
    return file


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file))


def test_sit_from_pruning_to_pictures(
    terminal: Any, tiny_latent_sit: Path, tiny_vae: Path, latents: Path, tmp_path: Path
) -> None:
    small, healed = tmp_path / "small", tmp_path / "healed"
    line = ["compress", tiny_latent_sit, "--method", "diffusion.tinyfusion", "--set", "rank=2", *LEARN]
    found = terminal.json(*line, "--calibration", latents, "--out", small)
    assert len(found["notes"]["diffusion.tinyfusion"]["kept_blocks"]) == 2
    line = ["recover", small, "--teacher", tiny_latent_sit, "--data", latents, *LEARN]
    assert terminal.json(*line, "--out", healed)["steps"] == 2
    drawn = []
    for sampler in ("sde", "ode"):
        line = ["generate", healed, "--label", 3, "--steps", 3, "--sampler", sampler, "--vae", tiny_vae]
        picture = tmp_path / f"{sampler}.png"
        assert terminal.json(*line, "--out", picture)["settings"]["sampler"] == sampler
        drawn.append(pixels(picture))
    assert (drawn[0] != drawn[1]).any()


def test_the_states_of_a_sit_weigh_less(tiny_latent_sit: Path, tiny_mar: Path) -> None:
    """beta is 2e-4 for SiT and 1e-2 for DiT and MAR, as published, unless it is said."""
    from modicum.trainer.objectives import objective_of

    assert objective_of(modicum.load(tiny_latent_sit)).state_weight == 2e-4
    assert objective_of(modicum.load(tiny_mar)).state_weight == 1e-2


def test_mar_from_pruning_to_pictures(
    terminal: Any, tiny_mar: Path, tiny_vae: Path, latents: Path, tmp_path: Path
) -> None:
    small, healed, picture = tmp_path / "small", tmp_path / "healed", tmp_path / "x.png"
    line = ["compress", tiny_mar, "--method", "diffusion.tinyfusion", "--set", "rank=2", *LEARN]
    shown = terminal(*line, "--calibration", latents, "--out", small)
    assert "of 4" in shown
    assert f"modicum report {small} --against {tiny_mar}" in " ".join(shown.split())
    sizes = json.loads((small / "config.json").read_text())
    assert (sizes["encoder_depth"], sizes["decoder_depth"]) == (1, 1)
    line = ["recover", small, "--teacher", tiny_mar, "--data", latents, *LEARN, "--out", healed]
    assert terminal.json(*line)["steps"] == 2
    line = ["generate", healed, "--label", "3", "--iterations", 2, "--steps", 2, "--vae", tiny_vae]
    found = terminal.json(*line, "--out", picture)
    assert found["settings"] == {"cfg": 3.0, "iterations": 2, "steps": 2}
    assert found["pixels"] == [16, 16]
    line = ["report", healed, "--against", tiny_mar, "--also", small, "--vae", tiny_vae, "--count", 2]
    terminal(*line, "--steps", 2, "--out", tmp_path / "page")
    assert list((tmp_path / "page").glob("*.html"))


def test_mar_in_pixels_needs_no_autoencoder(terminal: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = MARConfig(
        img_size=4, vae_stride=1, vae_embed_dim=1, encoder_embed_dim=8, encoder_depth=1, encoder_num_heads=1,
        decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=1, class_num=3, buffer_size=1, diffloss_d=1,
        diffloss_w=8, pixel_space=True,
    )  # fmt: skip
    model = save(MAR(config), tmp_path / "model")
    line = ["generate", model, "--iterations", 2, "--steps", 2, "--out", tmp_path / "x.png"]
    assert terminal.json(*line)["pixels"] == [4, 4]


@pytest.fixture
def pipeline(tiny_vae: Path, tmp_path: Path) -> Path:
    """What is read of a DiTPipeline directory."""
    torch.manual_seed(0)
    root = tmp_path / "pipeline"
    root.mkdir()
    (root / "model_index.json").write_text('{"_class_name": "DiTPipeline"}')
    sizes = DiTConfig(input_size=8, hidden_size=24, depth=4, num_heads=2, num_classes=10)
    save_diffusers(DiT(sizes), root / "transformer")
    shutil.copytree(tiny_vae, root / "vae")
    return root


def test_a_diffusers_pipeline_there_and_back(
    terminal: Any, pipeline: Path, latents: Path, tmp_path: Path
) -> None:
    picture, small, theirs = tmp_path / "x.png", tmp_path / "small", tmp_path / "theirs"
    assert terminal.json("generate", pipeline, "--label", 1, "--steps", 2, "--out", picture)["pixels"] == [
        16,
        16,
    ]
    terminal("compress", pipeline, "--method", "prune.oracle", "--out", small)
    assert modicum.load(small).config.depth == 2  # type: ignore[union-attr]
    packed = tmp_path / "packed"
    line = ["compress", pipeline / "transformer", "--method", "quantize.gptq", "--samples", 4]
    terminal(*line, "--set", "group_size=8", "--calibration", latents, "--out", packed)
    assert len(Manifest.read(packed).forms()) == 4 * 5
    line = ["report", small, "--against", pipeline, "--vae", pipeline / "vae", "--count", 2, "--steps", 2]
    terminal(*line, "--out", tmp_path / "page")
    assert terminal.json("export", small, "--diffusers", "--out", theirs)["blocks"] == 2
    assert json.loads((theirs / "config.json").read_text())["num_layers"] == 2
    assert modicum.load(theirs).config.depth == 2  # type: ignore[union-attr]


def test_convert(terminal: Any, tiny_mar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = MARConfig.from_dict(json.loads((tiny_mar / "config.json").read_text()))
    monkeypatch.setattr("modicum.models.mar.PRESETS", {"MAR-nano": sizes})
    torch.save({"model_ema": load_file(tiny_mar / "model.safetensors")}, tmp_path / "mar.pth")
    found = terminal.json("convert", tmp_path / "mar.pth", "--out", tmp_path / "out")
    assert (found["preset"], found["blocks"], found["latents"]) == ("MAR-nano", 4, [4, 8, 8])
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tiny_mar / "model.safetensors"
    ).read_bytes()


def test_latents_have_the_scale_of_their_model(
    terminal: Any, tiny_mar: Path, tiny_vae: Path, tmp_path: Path
) -> None:
    (tmp_path / "in" / "cat").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "in" / "cat" / "0.png")
    line = ["encode-latents", tmp_path / "in", "--vae", tiny_vae, "--size", 16, "--out"]
    terminal(*line, tmp_path / "a.safetensors")
    terminal(*line, tmp_path / "b.safetensors", "--for", tiny_mar)
    plain, scaled = (load_file(tmp_path / f"{name}.safetensors")["x0"] for name in "ab")
    torch.testing.assert_close(scaled, plain * 0.2325 / 0.18215)


MISTAKES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "sampler of MAR": (
        ["generate", "MAR", "--sampler", "ddim", "--vae", "VAE", "--out", "x.png"],
        ("sampler says nothing", "iterations"),
    ),
    "iterations of SiT": (
        ["generate", "SIT", "--iterations", "4", "--vae", "VAE", "--out", "x.png"],
        ("iterations says nothing",),
    ),
    "no VAE": (["generate", "MAR", "--out", "x.png"], ("draws latents", "--vae")),
    "no class": (
        ["generate", "MAR", "--label", "10", "--vae", "VAE", "--out", "x.png"],
        ("class 10", "0 to 9"),
    ),
    "too many folders": (
        ["encode-latents", "MANY", "--vae", "VAE", "--size", "16", "--for", "MAR", "--out", "x.safetensors"],
        ("11 subfolders", "10 classes", "'c10' would be class 10"),
    ),
    "latents for pixels": (
        ["encode-latents", "MANY", "--vae", "VAE", "--size", "16", "--for", "DIT", "--out", "x.safetensors"],
        ("draws no latents",),
    ),
    "export nothing": (["export", "SIT", "--out", "y"], ("Say how to export",)),
    "export MAR": (["export", "MAR", "--diffusers", "--out", "y"], ("is no DiT",)),
    "export SiT": (["export", "SIT", "--diffusers", "--out", "y"], ("kind 'sit'",)),
    "convert VAR alone": (
        ["convert", "VAR/model.safetensors", "--out", "y"],
        ("no DiT, SiT or MAR", "--vae"),
    ),
    "plan": (
        ["plan", "MAR", "--method", "quantize.rtn", "--format", "compressed-tensors"],
        ("this one is modicum's own", "--format modicum"),
    ),
    "step cache": (
        ["generate", "MAR", "--step-cache", "fora", "--vae", "VAE", "--out", "x.png"],
        ("no diffusion transformer",),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_in_a_sentence(
    mistake: str,
    tiny_mar: Path,
    tiny_dit: Path,
    tiny_var: Path,
    tiny_latent_sit: Path,
    tiny_vae: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for index in range(11):
        folder = tmp_path / "many" / f"c{index:02d}"
        folder.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(folder / "0.png")
    names = {
        "MAR": tiny_mar,
        "DIT": tiny_dit,
        "SIT": tiny_latent_sit,
        "VAE": tiny_vae,
        "MANY": tmp_path / "many",
    }
    names["VAR/model.safetensors"] = tiny_var / "model.safetensors"
    line, expected = MISTAKES[mistake]
    assert explain(app, [str(names.get(word, word)) for word in line]) != 0
    message = " ".join(capfd.readouterr().err.split())
    for words in expected:
        assert words in message
    assert [file.name for file in tmp_path.iterdir()] == ["many"]
