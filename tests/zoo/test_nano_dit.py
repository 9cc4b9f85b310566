from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from modicum.errors import OutputExists
from modicum.models.dit import DiT, DiTConfig, load_dit
from modicum.zoo import names, path
from modicum.zoo.digits import CLASSES, SIDE, Judge
from modicum.zoo.dit_card import draw_digits, for_judge, noise_error, to_canvas
from modicum.zoo.loop import Budget, Loop
from modicum.zoo.nano_dit import Averaged, NanoDiT, train

MEGABYTE = 2**20


def _small() -> NanoDiT:
    config = DiTConfig(
        input_size=8, patch_size=4, in_channels=1, hidden_size=16, depth=2, num_heads=2, num_classes=10,
        pixel_space=True,
    )  # fmt: skip
    return NanoDiT(config, batch=4, decay=0.9, digits=24, drawn_per_class=1)


def _train(out: Path, steps: int, report: Any = None, **changes: Any) -> dict[str, Any]:
    sizes = replace(_small(), **changes)
    train(out, out.with_name("work"), Budget(steps=steps), 3, report or (lambda line: None), sizes)
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture
def _quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr("modicum.zoo.nano_dit.train_judge", lambda seed: Judge().eval())
    monkeypatch.setattr("modicum.zoo.dit_card.SAMPLING", {"cfg": 1.5, "steps": 2, "sampler": "ddpm"})
    monkeypatch.setattr("modicum.zoo.dit_card._TIMES", 2)


@pytest.mark.usefixtures("_quick_figures")
def test_training_writes_a_model(tmp_path: Path) -> None:
    metrics = _train(tmp_path / "out", 6)
    model = load_dit(tmp_path / "out")
    assert model.config == _small().config
    assert torch.equal(model.pos_embed, DiT(model.config).pos_embed)
    assert metrics["drawn"] == CLASSES
    assert metrics["parameters"] == sum(p.numel() for p in model.parameters())
    assert "--steps 6 --seed 3" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(OutputExists):
        _train(tmp_path / "out", 6)


class _Killed(Exception):
    pass


@pytest.mark.usefixtures("_quick_figures")
def test_a_killed_training_ends_where_an_undisturbed_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modicum.zoo.nano_dit.measure", lambda *arguments: {})
    monkeypatch.setattr("modicum.zoo.nano_dit.card", lambda *arguments: "")
    monkeypatch.setattr("modicum.zoo.nano_dit.Loop", partial(Loop, save_seconds=0.0))

    with monkeypatch.context() as patch:
        calls = iter(range(100))
        own = torch.optim.AdamW.step

        def step(self: Any, *arguments: Any) -> Any:
            if next(calls) == 4:
                raise _Killed
            return own(self, *arguments)

        patch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(_Killed):
            _train(tmp_path / "a" / "out", 8)
    resumed: list[str] = []
    _train(tmp_path / "a" / "out", 8, resumed.append)
    assert resumed[0] == "resumed at step 4"
    _train(tmp_path / "b" / "out", 8)
    first, second = ((tmp_path / run / "out" / "model.safetensors").read_bytes() for run in "ab")
    assert first == second


def test_average_of_the_weights() -> None:
    models = Averaged(torch.nn.Linear(2, 2), 0.75)
    before = models.average.weight.clone()
    with torch.no_grad():
        models.online.weight.add_(4)
    models.update()
    torch.testing.assert_close(models.average.weight, before + 1)
    assert not models.average.weight.requires_grad
    torch.testing.assert_close(models.online.weight, before + 4)


def test_canvas_and_back() -> None:
    config = _small().config
    flat = torch.full((2, 3, SIDE, SIDE), 0.75)
    canvas = to_canvas(flat, config)
    assert canvas.shape == (2, 1, 8, 8)
    torch.testing.assert_close(canvas, torch.full_like(canvas, 0.5))
    torch.testing.assert_close(for_judge((canvas + 1) / 2), flat[:, :1])


shipped = pytest.mark.skipif("nano-dit" not in names(), reason="nano-dit is not shipped")


@pytest.fixture(scope="module")
def nano() -> DiT:
    return load_dit(path("nano-dit"))


@pytest.fixture(scope="module")
def judge() -> Judge:
    judge = Judge()
    judge.load_state_dict(load_file(path("nano-dit") / "judge.safetensors"))
    return judge.eval()


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return json.loads((path("nano-dit") / "metrics.json").read_text())


@shipped
def test_shipped_size(nano: DiT) -> None:
    files = list(path("nano-dit").iterdir())
    assert sum(file.stat().st_size for file in files) < 8 * MEGABYTE
    assert {file.name for file in files} == {
        "README.md", "config.json", "judge.safetensors", "metrics.json", "model.safetensors"
    }  # fmt: skip
    assert nano.config == NanoDiT().config


@shipped
def test_shipped_model_draws_the_digit_that_was_asked_for(
    nano: DiT, judge: Judge, figures: dict[str, Any]
) -> None:
    images, labels = draw_digits(nano, 4, seed=11, sampler="ddim", steps=20)
    drawn = for_judge(images)
    assert judge.accuracy(drawn, labels) > figures["drawn_accuracy"] - 0.15
    assert judge.accuracy(drawn, labels.roll(4)) < 0.3


@shipped
def test_shipped_figures_hold(nano: DiT, judge: Judge, figures: dict[str, Any]) -> None:
    pytest.importorskip("sklearn")
    from modicum.zoo.digits import load_digits

    real = load_digits("heldout")
    canvas = to_canvas(real.images, nano.config)
    assert judge.accuracy(real.images, real.labels) == pytest.approx(figures["real_accuracy"], abs=0.01)
    shrunk = for_judge((canvas + 1) / 2)
    assert judge.distance(shrunk) == pytest.approx(figures["shrunk_distance"], rel=0.05, abs=0.05)
    error = noise_error(nano, canvas[:50], real.labels[:50])
    assert error == pytest.approx(figures["heldout_noise_error"], rel=0.15)


@shipped
def test_the_class_helps_to_guess_the_noise(nano: DiT) -> None:
    """On drawn digits, the guess with the right label is better than with none, and with a wrong one worse."""
    images, labels = draw_digits(nano, 2, seed=5, sampler="ddim", steps=15)
    canvas = images * 2 - 1
    right, none, wrong = (
        noise_error(nano, canvas, y) for y in (labels, labels * 0 + nano.null_label, labels.roll(2))
    )
    assert right < none < wrong
