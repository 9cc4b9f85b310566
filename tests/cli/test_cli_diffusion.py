"""Commands for diffusion transformers: pictures, latents, pruned directories, and every mistake in one message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from modicum.cli.app import app
from modicum.cli.failures import explain
from modicum.models.dit.model import LATENT_SCALE
from modicum.models.dit.vae import load_vae
from modicum.pipeline.training_data import file_samples


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file))


def test_generate_draws_a_grid_that_can_be_seen(terminal: Any, tiny_dit: Path, tmp_path: Path) -> None:
    line = [
        "generate",
        tiny_dit,
        "--label",
        "3,8",
        "--count",
        4,
        "--steps",
        3,
        "--sampler",
        "ddim",
        "--seed",
        5,
    ]
    shown = terminal(*line, "--out", tmp_path / "grid.png")
    assert "4 of 8×8 pixels" in shown
    assert "8 times as large" in shown
    assert pixels(tmp_path / "grid.png").shape == (64 + 2 + 64, 64 + 2 + 64)
    found = terminal.json(*line, "--cfg", 1.5, "--out", tmp_path / "again.png")
    assert found["labels"] == [3, 8, 3, 8]
    assert found["seeds"] == [5, 6, 7, 8]
    assert found["settings"] == {"steps": 3, "sampler": "ddim", "cfg": 1.5}
    assert found["seconds_per_image"] == pytest.approx(sum(found["seconds"]) / 4)
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "grid.png").read_bytes()  # 1.5 is the default


def test_an_enlarged_picture_repeats_its_pixels(terminal: Any, tiny_dit: Path, tmp_path: Path) -> None:
    terminal("generate", tiny_dit, "--label", 2, "--steps", 2, "--out", tmp_path / "x.png")
    shown = pixels(tmp_path / "x.png")
    assert (shown == shown[::8, ::8].repeat(8, 0).repeat(8, 1)).all()
    assert len(np.unique(shown)) > 8


def test_a_picture_depends_on_its_own_seed_alone(terminal: Any, tiny_dit: Path, tmp_path: Path) -> None:
    line = ["generate", tiny_dit, "--label", 2, "--steps", 3]
    many = terminal.json(*line, "--count", 4, "--seed", 5, "--at-once", 3, "--out", tmp_path / "four.png")
    assert len(many["seconds"]) == 2
    terminal(*line, "--seed", 7, "--out", tmp_path / "one.png")
    four, one = pixels(tmp_path / "four.png").astype(int), pixels(tmp_path / "one.png")
    assert np.abs(four[66:, :64] - one).max() <= 1
    assert np.abs(four[:64, :64] - one).max() > 1


def test_without_a_label_the_seed_chooses_the_class(terminal: Any, tiny_dit: Path, tmp_path: Path) -> None:
    line = ["generate", tiny_dit, "--steps", 1]
    many = terminal.json(*line, "--count", 8, "--out", tmp_path / "many.png")["labels"]
    assert len(set(many)) > 1
    assert terminal.json(*line, "--seed", 6, "--out", tmp_path / "alone.png")["labels"] == many[6:7]


def test_latents_are_decoded(terminal: Any, tiny_latent_sit: Path, tiny_vae: Path, tmp_path: Path) -> None:
    line = ["generate", tiny_latent_sit, "--label", 1, "--vae", tiny_vae, "--steps", 2]
    found = terminal.json(*line, "--out", tmp_path / "x.png")
    assert found["pixels"] == [16, 16]
    assert pixels(tmp_path / "x.png").shape == (64, 64, 3)
    flow = terminal.json(*line, "--sampler", "ode", "--out", tmp_path / "ode.png")
    assert flow["settings"]["solver"] == "heun"  # the one that takes as many steps as it is told


def test_a_pruned_directory_draws_and_says_how(terminal: Any, tiny_dit: Path, tmp_path: Path) -> None:
    pruned, picture = tmp_path / "pruned", tmp_path / "x.png"
    shown = terminal("compress", tiny_dit, "--method", "prune.oracle", "--out", pruned)
    assert f"modicum generate {pruned}" in " ".join(shown.split())
    assert terminal.json("generate", pruned, "--label", 1, "--steps", 2, "--out", picture)["pixels"] == [8, 8]


def folder(root: Path) -> Path:
    generator = np.random.default_rng(0)
    for name, count in (("cat", 2), ("dog", 3)):
        (root / name).mkdir(parents=True)
        for index in range(count):
            noise = generator.integers(0, 256, (20 + index, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / name / f"{index}.png")
    return root


def test_latents_are_training_data(terminal: Any, tiny_vae: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "latents.safetensors"
    line = ["encode-latents", folder(tmp_path / "in"), "--vae", tiny_vae, "--size", 16, "--at-once", 2]
    found = terminal.json(*line, "--out", out)
    assert found["shape"] == [5, 4, 8, 8]
    assert found["classes"] == ["cat", "dog"]
    stored = load_file(out)
    assert stored["y"].tolist() == [0, 0, 1, 1, 1]
    assert [file.name for file in out.parent.iterdir()] == [out.name]
    rows = file_samples(out).batches(5, seed=0)(0)
    assert {key: tuple(value.shape) for key, value in rows.items()} == {"x0": (5, 4, 8, 8), "y": (5,)}
    either = (rows["x0"][:, None] == torch.cat((stored["x0"], stored["x0_flipped"]))).flatten(2).all(2)
    assert either.any(1).all()
    alone = terminal.json(*line[:-1], 5, "--out", tmp_path / "b.safetensors")
    assert alone["bytes"] == found["bytes"]
    torch.testing.assert_close(load_file(tmp_path / "b.safetensors")["x0"], stored["x0"])


@torch.no_grad()
def test_a_latent_is_the_encoding_of_its_picture(terminal: Any, tiny_vae: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(noise).save(tmp_path / "in" / "a.png")
    out = tmp_path / "x.safetensors"
    terminal("encode-latents", tmp_path / "in", "--vae", tiny_vae, "--size", 16, "--seed", 3, "--out", out)
    picture = torch.from_numpy(noise).permute(2, 0, 1)[None].float() / 127.5 - 1
    found = load_vae(tiny_vae).encode(torch.cat((picture, picture.flip(-1)))).latent_dist  # type: ignore[operator]
    sample = found.mean + found.std * torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3))
    stored = load_file(out)
    both = torch.cat((stored["x0"], stored["x0_flipped"]))
    torch.testing.assert_close(both, sample * LATENT_SCALE, atol=1e-5, rtol=1e-4)


MISTAKES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "policy": (
        ["generate", "DIT", "--kv", "scalekv", "--out", "x.png"],
        ("--kv", "map by map", "out of noise"),
    ),
    "text options": (["generate", "DIT", "--tokens", "4"], ("--tokens", "writes text")),
    "prompt": (["generate", "DIT", "--prompt", "cat", "--out", "x.png"], ("--prompt", "out of noise")),
    "text": (["generate", "DIT", "a cat", "--out", "x.png"], ("reads no prompts", "--label")),
    "steps for VAR": (["generate", "VAR", "--steps", "4", "--out", "x.png"], ("--steps", "map by map")),
    "no out": (["generate", "DIT", "--label", "1"], ("--out",)),
    "no PNG": (["generate", "DIT", "--out", "x.jpg"], ("PNG",)),
    "no class": (["generate", "DIT", "--label", "10", "--out", "x.png"], ("class 10", "0 to 9")),
    "sampler": (["generate", "DIT", "--sampler", "ode", "--out", "x.png"], ("'ode'", "ddpm")),
    "VAE for pixels": (["generate", "DIT", "--vae", "VAE", "--out", "x.png"], ("pixels itself",)),
    "no VAE": (["generate", "SIT", "--out", "x.png"], ("draws latents", "--vae")),
    "no such VAE": (["generate", "SIT", "--vae", "nowhere", "--out", "x.png"], ("nowhere", "AutoencoderKL")),
    "no folder": (["encode-latents", "nowhere", "--vae", "VAE", "--out", "x.safetensors"], ("no folder",)),
    "empty folder": (["encode-latents", "EMPTY", "--vae", "VAE", "--out", "x.safetensors"], ("no picture",)),
    "damaged": (
        ["encode-latents", "BROKEN", "--vae", "VAE", "--size", "16", "--out", "x.safetensors"],
        ("bad.png", "cannot be read"),
    ),
    "odd size": (
        ["encode-latents", "BROKEN", "--vae", "VAE", "--size", "15", "--out", "x.safetensors"],
        ("15 pixels", "multiple of 2"),
    ),
    "no safetensors": (["encode-latents", "EMPTY", "--vae", "VAE", "--out", "x.npz"], (".safetensors",)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_in_a_sentence(
    mistake: str,
    tiny_dit: Path,
    tiny_var: Path,
    tiny_latent_sit: Path,
    tiny_vae: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "bad.png").write_bytes(b"no picture")
    names = {"DIT": tiny_dit, "VAR": tiny_var, "SIT": tiny_latent_sit, "VAE": tiny_vae}
    names |= {"EMPTY": tmp_path / "empty", "BROKEN": tmp_path / "broken"}
    line, expected = MISTAKES[mistake]
    assert explain(app, [str(names.get(word, word)) for word in line]) != 0
    message = " ".join(capfd.readouterr().err.split())
    for words in expected:
        assert words in message
    assert sorted(file.name for file in tmp_path.iterdir()) == ["broken", "empty"]
