from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from modicum.errors import InvalidSetting
from modicum.models.dit import DiT

Make = Callable[..., Any]
LABELS = [0, 3]


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("plain", {}),
        ("plain", {"sampler": "ddim", "eta": 0.5, "cfg": 4.0}),
        ("pixels", {"sampler": "ddim", "steps": "ddim50"}),
        ("noise-only", {"cfg": 1.0}),
        ("no-null-label", {"cfg": 1.0}),
        ("sit", {}),
        ("sit", {"sampler": "ode"}),
        ("sit-without-sigma", {"sampler": "ode", "solver": "heun"}),
    ],
)
def test_a_picture_depends_on_its_seed_alone(tiny_dit: Make, case: str, options: dict[str, Any]) -> None:
    model = tiny_dit(case)
    options = {"steps": 4, **options}
    pictures = model.generate(LABELS, seed=[5, 6], **options)
    config = model.config
    assert pictures.shape == (2, config.in_channels, config.input_size, config.input_size)
    assert pictures.isfinite().all()
    assert torch.equal(model.generate(LABELS, seed=[5, 6], **options), pictures)
    alone = model.generate(LABELS[1], seed=[6], **options)
    torch.testing.assert_close(alone[0], pictures[1], atol=2e-3, rtol=1e-3)
    assert (model.generate(LABELS[1], seed=[7], **options) - alone).abs().max() > 0.01


def test_pixels_lie_between_zero_and_one(tiny_dit: Make) -> None:
    model = tiny_dit("pixels")
    images = model.generate(LABELS, seed=0, steps=3)
    assert images.min() >= 0
    assert images.max() <= 1
    torch.testing.assert_close(
        model.picture(torch.tensor([-3.0, -1, 0, 1, 2])), torch.tensor([0, 0, 0.5, 1, 1])
    )
    steps = list(model.steps(LABELS, seed=0, steps=3))
    assert all(step.x0.abs().max() <= 1 for step in steps)  # guesses are kept in range


def test_guidance_of_one_runs_no_unconditional_rows(dit: DiT, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    forward = dit.forward
    monkeypatch.setattr(dit, "forward", lambda x, t, y: rows.append(len(x)) or forward(x, t, y))
    plain = dit.generate(LABELS, seed=0, steps=3, cfg=1.0)
    near = dit.generate(LABELS, seed=0, steps=3, cfg=1.0 + 1e-7)
    assert rows == [2] * 3 + [4] * 3
    torch.testing.assert_close(plain, near, atol=2e-3, rtol=1e-3)


def test_guidance_steers_and_can_reach_all_channels(dit: DiT) -> None:
    drawn = {cfg: dit.generate(LABELS, seed=0, steps=3, cfg=cfg) for cfg in (1.0, 4.0)}
    assert (drawn[1.0] - drawn[4.0]).abs().max() > 0.01
    whole = dit.generate(LABELS, seed=0, steps=3, cfg=4.0, guided_channels=4)
    assert (drawn[4.0] - whole).abs().max() > 1e-3
    assert torch.equal(dit.generate(LABELS, seed=0, steps=3, cfg=4.0, guided_channels=9), whole)


def test_several_pictures_per_label_and_no_label(dit: DiT) -> None:
    pictures = dit.generate(LABELS, count=2, seed=[1, 2, 3, 4], steps=2)
    torch.testing.assert_close(pictures[2:3], dit.generate(3, seed=[3], steps=2), atol=2e-3, rtol=1e-3)
    assert dit.generate(dit.null_label, seed=0, steps=2).shape == (1, 4, 8, 8)


def test_progress_goes_up_to_one(tiny_dit: Make) -> None:
    for case, options in (("plain", {}), ("sit", {}), ("sit", {"sampler": "ode"})):
        told: list[float] = []
        tiny_dit(case).generate(1, seed=0, steps=5, progress=told.append, **options)
        assert told == sorted(told)
        assert told[-1] == pytest.approx(1)


def test_latents_are_decoded_by_an_autoencoder(dit: DiT) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(block_out_channels=[8], latent_channels=4, norm_num_groups=4).eval()
    latents = dit.generate(LABELS, seed=0, steps=2)
    images = dit.generate(LABELS, seed=0, steps=2, vae=vae)
    with torch.no_grad():
        want = (vae.decode(latents / 0.18215).sample + 1) / 2
    torch.testing.assert_close(images, want.clamp(0, 1))
    assert images.shape == (2, 3, 8, 8)


def test_bfloat16_draws_finite_pictures_in_float32(dit: DiT) -> None:
    pictures = dit.bfloat16().generate(LABELS, seed=0, steps=3)
    assert pictures.dtype == torch.float32
    assert pictures.isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        {"labels": [6]},
        {"labels": [-1]},
        {"labels": []},
        {"labels": [1], "count": 0},
        {"labels": [1, 2], "seed": [1, 2, 3]},
        {"labels": [1], "sampler": "ode"},
        {"labels": [1], "steps": 1001},
        {"labels": [1], "steps": "quick"},
        {"labels": [1], "case": "sit", "sampler": "ddpm"},
        {"labels": [1], "case": "sit", "steps": "ddim50"},
        {"labels": [1], "case": "sit", "steps": 0},
        {"labels": [1], "case": "no-null-label", "cfg": 2.0},
        {"labels": [5], "case": "no-null-label", "cfg": 1.0},
    ],
)
def test_requests_that_are_refused(tiny_dit: Make, options: dict[str, Any]) -> None:
    model = tiny_dit(options.pop("case", "plain"))
    with pytest.raises(InvalidSetting):
        model.generate(**options)
