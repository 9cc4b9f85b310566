from __future__ import annotations

import sys

import pytest
import torch

from modicum.errors import MissingExtra
from modicum.zoo.digits import CLASSES, SIDE, Judge, jitter, load_digits


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_splits() -> None:
    pytest.importorskip("sklearn")
    train, held_out = load_digits("train"), load_digits("heldout")
    assert (len(train.labels), len(held_out.labels)) == (1437, 360)
    for digits in (train, held_out):
        assert digits.images.shape[1:] == (3, SIDE, SIDE)
        assert digits.images.min() >= 0
        assert digits.images.max() <= 1
        assert torch.equal(digits.images[:, 0], digits.images[:, 2])
        assert digits.labels.unique().tolist() == list(range(CLASSES))
    seen = {image.numpy().tobytes() for image in train.images}
    assert not any(image.numpy().tobytes() in seen for image in held_out.images)


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtra, match="scikit-learn"):
        load_digits("train")


def test_jitter_is_small_and_seeded() -> None:
    image = torch.zeros(1, 1, SIDE, SIDE)
    image[..., 12:20, 12:20] = 1
    moved = jitter(image.repeat(64, 1, 1, 1), _generator())
    assert torch.equal(moved, jitter(image.repeat(64, 1, 1, 1), _generator()))
    assert not torch.equal(moved[0], moved[1])
    place = torch.arange(SIDE).float()
    for axis in (-1, -2):
        profile = moved.sum(dim=(1, axis))  # [n, side]
        centre = (profile * place).sum(-1) / profile.sum(-1)
        assert (centre - 15.5).abs().max() < 2
    assert 0.7 < moved.sum() / (64 * image.sum()) < 1.05


def test_judge_measures_what_it_is_told_is_real() -> None:
    torch.manual_seed(0)
    judge, images = Judge().eval(), torch.rand(80, 3, SIDE, SIDE, generator=_generator())
    with torch.no_grad():
        features = judge.features(images).double()
        judge.real_mean.copy_(features.mean(0))
        judge.real_covariance.copy_(features.T.cov())
        verdict = judge(images).argmax(-1)
    assert judge.distance(images) == pytest.approx(0, abs=1e-4)
    assert judge.distance(images * 0.2) > 1e-3
    assert judge.accuracy(images, verdict) == 1
    assert judge.accuracy(images, (verdict + 1) % CLASSES) == 0
