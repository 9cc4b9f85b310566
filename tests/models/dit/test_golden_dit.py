"""Parity with the original code, over every recorded model named dit-* below $MODICUM_GOLDEN."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from modicum.models.dit import DiT, DiTConfig, GaussianDiffusion, SamplingStep, convert, denoise, load_dit
from modicum.models.dit.embeddings import time_features

ROOT = Path(os.environ.get("MODICUM_GOLDEN", Path(__file__).parents[2] / "golden"))
FOLDERS = sorted(ROOT.glob("dit-*"))


@dataclass
class Golden:
    """A recorded model: settings, tensors in and out, and our model with its weights."""

    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    model: DiT
    folder: Path

    def given(self, *names: str) -> list[Tensor]:
        return [self.tensors[f"in.{name}"] for name in names]

    def matches(self, name: str, got: Tensor, share: float = 1e-4) -> None:
        """Integers exactly, floats to a share of the largest recorded value (at least 1)."""
        want = self.tensors[name]
        assert got.shape == want.shape, name
        if not want.is_floating_point():
            assert torch.equal(got.long(), want.long()), name
            return
        allowed = share * max(1.0, want.abs().max().item())
        assert (got.to(want.dtype) - want).abs().max().item() <= allowed, name

    @property
    def learn_sigma(self) -> bool:
        return self.model.config.learn_sigma

    def guided(self, labels: list[int]) -> Callable[[Tensor, Tensor], Tensor]:
        """The network for these labels, then as many times none: the doubled batch as the original has it."""
        both = torch.tensor(labels + [self.model.null_label] * len(labels))
        return lambda x, t: self.model.forward_with_cfg(x, t, both, self.settings["cfg_scale"])

    def denoise(self, **options: Any) -> list[SamplingStep]:
        """The recorded sampling, with the recorded noise."""
        z, noise = self.given("z", "sample_noise")
        diffusion = GaussianDiffusion(self.settings["steps"], self.learn_sigma)
        network = self.guided(self.settings["labels"])
        return list(denoise(diffusion, network, z.repeat(2, 1, 1, 1), lambda k, x: noise[k], **options))


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    folder: Path = request.param
    settings = json.loads((folder / "config.json").read_text())
    out = tmp_path_factory.mktemp("converted") / "model"
    convert(folder / "weights.safetensors", out, DiTConfig.from_dict(settings))
    return Golden(settings, load_file(folder / "io.safetensors"), load_dit(out), folder)


def test_golden_dit_models_are_there() -> None:
    assert FOLDERS, f"no dit-* below {ROOT}"


def test_golden_names_and_values(golden: Golden) -> None:
    recorded, ours = load_file(golden.folder / "weights.safetensors"), golden.model.state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in recorded.items()}
    assert all(torch.equal(ours[name], tensor) for name, tensor in recorded.items())
    assert torch.equal(DiT(golden.model.config).pos_embed, recorded["pos_embed"])


@torch.no_grad()
def test_golden_forward(golden: Golden) -> None:
    model, (x, t, y) = golden.model, golden.given("x", "t", "y")
    golden.matches("out.t_features", time_features(t))
    condition, tokens = model.condition(t, y), model.embed(x)
    golden.matches("out.condition", condition)
    golden.matches("out.tokens_in", tokens)
    golden.matches("out.block0", model.blocks[0](tokens, condition))
    golden.matches("out.forward", model(x, t, y))
    golden.matches("out.forward_dropped", model(x, t, y, golden.tensors["in.drop_ids"]))


@torch.no_grad()
def test_golden_guidance(golden: Golden) -> None:
    x, t = golden.given("x", "t")
    half = len(golden.tensors["out.forward_with_cfg"]) // 2
    chosen = torch.arange(1, half + 1).repeat(2)  # the recorded times are t[[1, 2, 1, 2]], the labels 0 and 1
    guided = golden.guided(list(range(half)))
    golden.matches("out.forward_with_cfg", guided(x[: 2 * half], t[chosen]))


def test_golden_tables(golden: Golden) -> None:
    diffusion = GaussianDiffusion(golden.settings["steps"], golden.learn_sigma)
    golden.matches("out.table.timestep_map", diffusion.timesteps)
    for name, ours in {
        "betas": diffusion.betas,
        "alphas_cumprod": diffusion.abar,
        "posterior_log_variance_clipped": diffusion.posterior_log_variance,
    }.items():
        golden.matches(f"out.table.{name}", ours, 1e-12)


@torch.no_grad()
def test_golden_ddpm(golden: Golden) -> None:
    steps = golden.denoise()
    golden.matches("out.ddpm.samples", torch.stack([step.x for step in steps]))
    golden.matches("out.ddpm.pred_x0", torch.stack([step.x0 for step in steps]))


@torch.no_grad()
def test_golden_ddim(golden: Golden) -> None:
    recorded = [name for name in golden.tensors if name.startswith("out.ddim.eta")]
    assert recorded
    for name in recorded:
        golden.matches(name, golden.denoise(eta=float(name.removeprefix("out.ddim.eta")))[-1].x)


def test_golden_losses_and_gradients(golden: Golden) -> None:
    model, diffusion = golden.model, GaussianDiffusion(learn_sigma=golden.learn_sigma)
    x0, t, noise, y = golden.given("x0", "t_loss", "noise", "y")
    golden.matches("out.q_sample", diffusion.q_sample(x0, t, noise))
    losses = diffusion.losses(lambda x, step: model(x, step, y), x0, t, noise)
    for name in ("mse", "vb", "loss"):
        if f"out.loss.{name}" in golden.tensors:
            golden.matches(f"out.loss.{name}", getattr(losses, name))
    losses.loss.mean().backward()
    for name in (name for name in golden.tensors if name.startswith("out.grad.")):
        gradient = model.get_parameter(name.removeprefix("out.grad.")).grad
        want = golden.tensors[name]
        assert (gradient - want).abs().max() <= 1e-3 * want.abs().max(), name
    model.zero_grad()
