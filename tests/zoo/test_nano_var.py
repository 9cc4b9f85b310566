from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from modicum.errors import OutputExists
from modicum.models.var import VAR, VQVAE, VAEConfig, VARConfig, load_var
from modicum.zoo import names, path
from modicum.zoo.digits import CLASSES, SIDE, Judge, load_judge
from modicum.zoo.loop import Budget
from modicum.zoo.nano_var import train
from modicum.zoo.nano_var_tokenizer import start_codebook
from modicum.zoo.nano_var_training import NanoVar
from modicum.zoo.var_card import draw_digits

MEGABYTE = 2**20


def _small() -> NanoVar:
    vae = VAEConfig(
        vocab_size=16, z_channels=4, ch=8, ch_mult=(1, 1, 1), num_res_blocks=1, groupnorm_groups=4
    )
    config = VARConfig(num_classes=10, depth=1, embed_dim=16, num_heads=2, patch_nums=(1, 2, 4, 8), vae=vae)
    return NanoVar(config, image_batch=4, batch=4, versions=1, digits=24, drawn_per_class=1)


def _train(out: Path, steps: int, report: Any = None) -> dict[str, Any]:
    train(out, out.with_name("work"), Budget(steps=steps), 3, report or (lambda line: None), _small())
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture
def _quick_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr("modicum.zoo.nano_var.train_judge", lambda seed: Judge().eval())


@pytest.mark.usefixtures("_quick_judge")
def test_training_writes_a_model(tmp_path: Path) -> None:
    metrics = _train(tmp_path / "out", 10)
    model = load_var(tmp_path / "out")
    assert model.config == _small().config
    assert metrics["drawn"] == CLASSES
    assert len(metrics["heldout_map_losses"]) == 4
    assert "--steps 10 --seed 3" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(OutputExists):
        _train(tmp_path / "out", 10)


class _Killed(Exception):
    pass


@pytest.fixture
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modicum.zoo.nano_var.measure", lambda *arguments: {})
    monkeypatch.setattr("modicum.zoo.nano_var.card", lambda *arguments: "")


@pytest.mark.usefixtures("_quick_judge", "_no_figures")
@pytest.mark.parametrize("part", ["autoencoder", "quantizer", "transformer"])
def test_a_killed_training_ends_where_an_undisturbed_one_does(tmp_path: Path, part: str) -> None:
    def kill(line: str) -> None:
        if line.startswith(part):
            raise _Killed

    with pytest.raises(_Killed):
        _train(tmp_path / "a" / "out", 8, kill)
    _train(tmp_path / "a" / "out", 8)
    _train(tmp_path / "b" / "out", 8)
    for file in ("model.safetensors", "vae.safetensors"):
        assert (tmp_path / "a" / "out" / file).read_bytes() == (tmp_path / "b" / "out" / file).read_bytes()


def test_codebook_starts_as_faded_features() -> None:
    torch.manual_seed(0)
    config = _small().config
    vae, images = VQVAE(config.vae, config.schedule), torch.rand(20, 3, SIDE, SIDE) * 2 - 1
    start_codebook(vae, images, seed=1)
    codes = vae.quantize.embedding.weight
    with torch.no_grad():
        features = vae.features(images)
        assert (codes.norm(dim=1) <= features.norm(dim=1).max() + 1e-5).all()
        h = torch.randn(1, 4, 8, 8)
        for scale in range(4):
            torch.testing.assert_close(vae.quantize.phi(scale)(h), h)


shipped = pytest.mark.skipif("nano-var" not in names(), reason="nano-var is not shipped")


@pytest.fixture(scope="module")
def nano() -> VAR:
    return load_var(path("nano-var"))


@pytest.fixture(scope="module")
def judge() -> Judge:
    found = load_judge(path("nano-var"))
    assert found is not None
    return found


@shipped
def test_shipped_size() -> None:
    files = list(path("nano-var").iterdir())
    assert sum(file.stat().st_size for file in files) < 8 * MEGABYTE
    assert {file.name for file in files} == {
        "README.md", "config.json", "judge.safetensors", "metrics.json", "model.safetensors", "vae.safetensors"
    }  # fmt: skip


@shipped
def test_shipped_model_draws_digits(nano: VAR, judge: Judge) -> None:
    metrics = json.loads((path("nano-var") / "metrics.json").read_text())
    images, labels = draw_digits(nano, 4, seed=11)
    assert judge.accuracy(images, labels) > metrics["drawn_accuracy"] - 0.15
    shuffled = judge.accuracy(images, labels.roll(4))
    assert shuffled < 0.3  # it draws the digit that was asked for


@shipped
def test_shipped_tokenizer_adds_detail_map_by_map(nano: VAR) -> None:
    images, _ = draw_digits(nano, 1, seed=12)
    with torch.no_grad():
        features = nano.vae.features(images * 2 - 1)
        _, running = nano.vae.quantize.encode(features)
    left = [(features - f_hat).norm().item() for f_hat in running]
    assert all(after <= before for before, after in pairwise(left))
    assert left[-1] < 0.5 * features.norm()


@shipped
def test_shipped_figures_hold_for_the_tokenizer(nano: VAR, judge: Judge) -> None:
    pytest.importorskip("sklearn")
    from modicum.zoo.digits import load_digits

    metrics = json.loads((path("nano-var") / "metrics.json").read_text())
    real = load_digits("heldout")
    rebuilt = nano.decode(nano.encode(real.images))
    assert judge.accuracy(rebuilt, real.labels) == pytest.approx(metrics["rebuilt_accuracy"], abs=0.02)
    assert judge.distance(rebuilt) == pytest.approx(metrics["rebuilt_distance"], rel=0.1)
