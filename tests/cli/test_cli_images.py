"""Commands for models that draw: pictures, policies, comparisons, conversion, and every mistake in one message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from modicum.cli.app import app
from modicum.cli.failures import explain


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file))


def test_generate_draws_a_grid(terminal: Any, tiny_var: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "grid.png"
    line = ["generate", tiny_var, "--label", "3,1", "--label", 0, "--count", 4, "--seed", 5, "--out"]
    shown = terminal(*line, out)
    assert "4 of 16×16 pixels" in shown
    assert "\x1b" not in shown
    assert pixels(out).shape == (16 + 2 + 16, 16 + 2 + 16, 3)
    assert [file.name for file in out.parent.iterdir()] == ["grid.png"]
    found = terminal.json(*line, tmp_path / "again.png")
    assert found["captions"] == ["3", "1", "0", "3"]
    assert found["seeds"] == [5, 6, 7, 8]
    assert found["pixels"] == [16, 16]
    assert 0 < found["carried_bytes"] == max(found["carried"]) <= found["peak_bytes"]
    assert len(found["seconds"]) == 1
    assert (tmp_path / "again.png").read_bytes() == out.read_bytes()
    assert terminal(*line, out, "--overwrite", "--quiet") == ""


def test_an_image_of_a_grid_can_be_drawn_alone(terminal: Any, tiny_var: Path, tmp_path: Path) -> None:
    terminal("generate", tiny_var, "--label", 2, "--count", 4, "--seed", 5, "--out", tmp_path / "four.png")
    terminal("generate", tiny_var, "--label", 2, "--seed", 8, "--out", tmp_path / "one.png")
    last = pixels(tmp_path / "four.png")[18:, 18:].astype(int)
    assert np.abs(last - pixels(tmp_path / "one.png")).max() <= 1


def test_without_a_label_the_seed_chooses(terminal: Any, tiny_var: Path, tmp_path: Path) -> None:
    many = terminal.json("generate", tiny_var, "--count", 8, "--out", tmp_path / "many.png")["captions"]
    assert len(set(many)) > 1
    alone = terminal.json("generate", tiny_var, "--seed", 6, "--out", tmp_path / "alone.png")["captions"]
    assert alone == many[6:7]


def test_a_policy_is_fitted_saved_and_used_again(terminal: Any, tiny_var: Path, tmp_path: Path) -> None:
    policy, line = tmp_path / "policy.json", ["generate", tiny_var, "--label", 3]
    setting = ["--kv", "scalekv", "--budget", "25%", "--set", "window=4", "--set", "scalekv.drafters=1"]
    fitted = terminal.json(*line, *setting, "--save-policy", policy)
    assert fitted["policy"] == "cache.scalekv"
    assert fitted["policy_file"] == str(policy)
    assert "out" not in fitted
    assert json.loads(policy.read_text())["uniform"] == 9  # a quarter of the 39 tokens before the last map
    used = terminal.json(*line, "--policy", policy, "--out", tmp_path / "a.png")
    once = terminal.json(*line, *setting, "--out", tmp_path / "b.png")
    full = terminal.json(*line, "--out", tmp_path / "c.png")
    assert used["carried"] == once["carried"]
    assert used["carried_bytes"] < full["carried_bytes"]
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "c.png").read_bytes()


def test_a_published_budget_file_is_a_policy(terminal: Any, tiny_var: Path, tmp_path: Path) -> None:
    from modicum.allocate.budget_file import write_budget
    from modicum.allocate.cache_tokens import scale_aware
    from modicum.models.next_scale import Schedule

    drafters = [(0, 4)]
    budget = scale_aware(Schedule.square((1, 2, 3, 5, 8)), 2, 20, drafters, window=16, floor=16)
    write_budget(tmp_path / "budget.json", drafters, budget)
    line = ["generate", tiny_var, "--policy", tmp_path / "budget.json", "--out", tmp_path / "x.png"]
    found = terminal.json(*line)
    assert found["settings"]["drafters"] == [[0, 4]]
    token = 24 * 2 * 4 * 2  # channels, keys and values, bytes of float32, rows with guidance
    assert found["carried"] == [budget.total(k) * token for k in range(1, 5)]


def test_a_budget_in_bytes_is_kept(terminal: Any, tiny_var: Path, tmp_path: Path) -> None:
    line = ["generate", tiny_var, "--label", 1, "--count", 6, "--at-once", 4, "--out", tmp_path / "x.png"]
    found = terminal.json(*line, "--kv", "sliding", "--budget", "40kB")
    assert 30_000 < found["carried_bytes"] <= 40_000  # of the four images that are drawn at once


def test_infinity_draws_from_features(
    terminal: Any, tiny_infinity: Path, text_features: Path, tmp_path: Path
) -> None:
    line = ["generate", tiny_infinity, "--features", text_features, "--out"]
    found = terminal.json(*line, tmp_path / "a.png")
    assert found["captions"] == ["a boat", "a cat"]
    assert found["pixels"] == [32, 32]
    wide = terminal.json(
        *line, tmp_path / "b.png", "--ratio", 0.5, "--count", 1, "--kv", "scalekv", "--budget", "50",
        "--set", "window=4", "--set", "drafters=1", "--cfg", 2, "--tau", 0.5,
    )  # fmt: skip
    height, width = wide["pixels"]
    assert width == 2 * height
    assert pixels(tmp_path / "b.png").shape == (height, width, 3)


def test_compare_kv(terminal: Any, tiny_var: Path, tmp_path: Path) -> None:
    line = ["compare-kv", tiny_var, "--policies", "full, streaming,scalekv", "--budgets", "20,12"]
    line += ["--set", "window=4", "--count", 3, "--label", "0,1,2", "--rounds", 1, "--out"]
    shown = terminal(*line, tmp_path / "report")
    for word in ("full", "streaming 20", "scalekv 12", "PSNR", "SSIM", "report.html"):
        assert word in shown
    names = sorted(file.name for file in (tmp_path / "report").iterdir())
    assert names == ["comparison.json", "pictures.png", "report.html"]
    found = terminal.json(*line, tmp_path / "report", "--overwrite")
    assert [entry["budget"] for entry in found["entries"]] == [None, "20", "20", "12", "12"]
    saved = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert saved["entries"][1]["psnr"] == found["entries"][1]["psnr"]


def test_convert(terminal: Any, tiny_var: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modicum.models import var

    model = var.load_var(tiny_var)
    monkeypatch.setattr(var, "PRESETS", {"d2": model.config})
    torch.save(model.transformer.state_dict(), tmp_path / "var.pth")
    torch.save(model.vae.state_dict(), tmp_path / "vae.pth")
    line = ["convert", tmp_path / "var.pth", "--vae", tmp_path / "vae.pth", "--out"]
    shown = terminal(*line, tmp_path / "a")
    for word in ("var d2", "2 layers, 3 heads of 8 channels", "1×1 2×2 3×3 5×5 8×8: 103 tokens"):
        assert word in shown
    found = terminal.json(*line, tmp_path / "b", "--half")
    assert (found["kind"], found["preset"], found["maps"][-1]) == ("var", "d2", [8, 8])
    assert found["weights_bytes"] < 0.6 * sum(
        f.stat().st_size for f in (tmp_path / "a").glob("*.safetensors")
    )
    terminal("generate", tmp_path / "b", "--label", 1, "--out", tmp_path / "x.png")


def generate(*more: str) -> list[str]:
    return ["generate", "VAR", "--out", "OUT/x.png", *more]


def compare(*more: str) -> list[str]:
    return ["compare-kv", "VAR", "--out", "OUT/report", *more]


# name -> arguments behind `modicum`, what the message must name
CASES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "label outside the classes": (generate("--label", "5"), ("no class 5", "0 to 4")),
    "label that is no number": (generate("--label", "cat"), ("'cat'", "whole numbers")),
    "negative label": (generate("--label=-1"), ("'-1'",)),
    "prompt for VAR": (generate("--prompt", "a cat"), ("reads no prompts", "--label")),
    "text for VAR": (["generate", "VAR", "a cat", "--out", "OUT/x.png"], ("reads no prompts", "--label")),
    "features for VAR": (generate("--features", "FEATURES"), ("reads no prompts",)),
    "text encoder for VAR": (generate("--text-encoder", "VAR"), ("encoder",)),
    "tau for VAR": (generate("--tau", "1"), ("VAR", "tau")),
    "no image": (generate("--count", "0"), ("--count",)),
    "fewer than no image": (generate("--count=-2"), ("--count",)),
    "negative seed": (generate("--seed=-2"), ("seed -2",)),
    "text options": (generate("--tokens", "4"), ("--tokens", "draws images")),
    "nowhere to put it": (["generate", "VAR"], ("images.png",)),
    "no PNG": (["generate", "VAR", "--out", "OUT/x.jpg"], ("x.jpg", ".png")),
    "existing output": (["generate", "VAR", "--out", "THERE/there.png"], ("there.png exists", "--overwrite")),
    "existing policy": (generate("--save-policy", "THERE/there.png"), ("there.png exists",)),
    "unknown policy": (generate("--kv", "scalekw"), ("'scalekw'", "Did you mean 'scalekv'?")),
    "a method that is no policy": (generate("--kv", "prune.wanda"), ("cache policy", "'prune.wanda'")),
    "budget of nothing": (generate("--budget", "10%"), ("--kv scalekv",)),
    "budget of the full cache": (generate("--kv", "full", "--budget", "10%"), ("full", "no budget")),
    "budget that is none": (generate("--kv", "sliding", "--budget", "much"), ("much",)),
    "budget below the window": (generate("--kv", "scalekv", "--budget", "10%"), ("10% (3 tokens", "window of 16")),
    "misspelt setting": (generate("--kv", "snapkv", "--set", "windo=4"), ("'windo'", "Did you mean 'window'?")),
    "setting without value": (generate("--kv", "snapkv", "--set", "window"), ("KEY=VALUE",)),
    "policy twice": (generate("--policy", "POLICY", "--kv", "sliding"), ("--policy", "--kv")),
    "policy of another depth": (generate("--policy", "POLICY"), ("6 layers", "has 2")),
    "budget file of another depth": (generate("--policy", "BUDGET"), ("3", "2")),
    "policy that is none": (generate("--policy", "FEATURES"), ("features.safetensors",)),
    "policy that is missing": (generate("--policy", "OUT/none.json"), ("none.json",)),
    "Infinity without encoder": (
        ["generate", "INFINITY", "--prompt", "a cat", "--out", "OUT/x.png"],
        ("no text encoder", "--text-encoder", "--features"),
    ),
    "Infinity without anything": (["generate", "INFINITY", "--out", "OUT/x.png"], ("--prompt",)),
    "label for Infinity": (["generate", "INFINITY", "--label", "3", "--out", "OUT/x.png"], ("knows no classes",)),
    "prompt and features": (
        ["generate", "INFINITY", "a cat", "--features", "FEATURES", "--out", "OUT/x.png"],
        ("twice",),
    ),
    "an encoder that is none": (
        ["generate", "INFINITY", "a cat", "--text-encoder", "VAR", "--out", "OUT/x.png"],
        ("T5 encoder",),
    ),
    "image options for text": (["generate", "LLAMA", "hello", "--label", "3"], ("--label", "writes text")),
    "policy for text": (["generate", "LLAMA", "hello", "--kv", "scalekv"], ("--kv", "writes text")),
    "no text": (["generate", "LLAMA"], ("Nothing to continue",)),
    "evaluate images": (["evaluate", "VAR", "--against", "VAR"], ("draws images", "compare-kv")),
    "report images": (["report", "LLAMA", "--against", "VAR", "--out", "OUT"], ("draws images", "compare-kv")),
    "compare policies of a language model": (["compare-kv", "LLAMA", "--out", "OUT"], ("does not draw",)),
    "compare nothing": (compare("--policies", ","), ("--policies",)),
    "compare an unknown policy": (compare("--policies", "snapkv,scalekw"), ("'scalekw'", "'scalekv'")),
    "compare with a window that is too large": (compare("--budgets", "25%"), ("25% (9 tokens", "window")),
    "compare into a directory that is there": (["compare-kv", "VAR", "--out", "THERE"], ("exists", "--overwrite")),
    "compare without rounds": (compare("--rounds", "0"), ("--rounds",)),
    "convert what is missing": (["convert", "OUT/x.pth", "--vae", "OUT/y.pth", "--out", "OUT"], ("x.pth",)),
    "convert what is no checkpoint": (
        ["convert", "FEATURES", "--vae", "FEATURES", "--out", "OUT"],
        ("neither VAR nor Infinity",),
    ),
    "convert over something": (["convert", "FEATURES", "--vae", "FEATURES", "--out", "THERE"], ("already there",)),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(
    tiny_var: Path, tiny_infinity: Path, tiny_llama: Path, text_features: Path, tmp_path_factory: Any
) -> dict[str, str]:
    from modicum.allocate.budget_file import write_budget
    from modicum.allocate.cache_tokens import CacheBudget, scale_aware
    from modicum.cache import CachePolicy
    from modicum.cache.sliding import Sliding
    from modicum.models.next_scale import Schedule

    folder = tmp_path_factory.mktemp("places")
    schedule = Schedule.square((1, 2, 3, 5, 8))
    policy = CachePolicy(Sliding(budget="8"), CacheBudget.uniform(schedule, 6, 8), 8)
    (folder / "policy.json").write_text(json.dumps(policy.to_json()))
    drafters = [(0, 4)]
    write_budget(folder / "budget.json", drafters, scale_aware(schedule, 3, 20, drafters, window=4, floor=4))
    (folder / "there").mkdir()
    (folder / "there" / "there.png").write_bytes(b"")
    return {
        "VAR": str(tiny_var), "INFINITY": str(tiny_infinity), "LLAMA": str(tiny_llama),
        "FEATURES": str(text_features), "POLICY": str(folder / "policy.json"),
        "BUDGET": str(folder / "budget.json"), "THERE": str(folder / "there"),
    }  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_about_images_is_explained(
    name: str,
    places: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments, named = CASES[name]
    known = {**places, "OUT": str(tmp_path / "out")}
    line = []
    for argument in arguments:
        head, slash, tail = argument.partition("/")
        line.append(known.get(head, head) + slash + tail)
    monkeypatch.setenv("COLUMNS", "500")
    assert explain(app, [*line, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.err == ""
    found = json.loads(captured.out)
    assert found.keys() == {"error", "what", "hint"}
    for part in named:
        assert part in found["what"] + found["hint"], found
    assert not (tmp_path / "out").exists()
