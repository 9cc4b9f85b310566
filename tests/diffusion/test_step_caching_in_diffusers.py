"""First-Block-Cache beside the hooks of diffusers, on the same weights: the same steps are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modicum import zoo
from modicum.diffusion.first_block_cache import FirstBlockCache
from modicum.diffusion.step_cache import StepPolicy
from modicum.models.dit import DiT, load_dit, save_diffusers
from modicum.models.dit.diffusers_layout import exact

STEPS = 20
HOW: dict[str, Any] = {"labels": [2, 7], "steps": STEPS, "sampler": "ddim", "cfg": 1.5, "seed": 0}


@pytest.fixture(scope="module")
def nano() -> DiT:
    return load_dit(zoo.path("nano-dit"))


@pytest.fixture
def theirs(nano: DiT, tmp_path: Path) -> nn.Module:
    """diffusers' network with the weights of nano-dit; its own class does not take part in caching."""
    diffusers = pytest.importorskip("diffusers")
    cached = type("Cached", (diffusers.DiTTransformer2DModel, diffusers.CacheMixin), {})
    return exact(cached.from_pretrained(save_diffusers(nano, tmp_path / "model")).eval())


@pytest.mark.parametrize("tau", [0.0, 0.1, 0.3])
def test_the_same_steps_are_left_out_and_the_same_images_drawn(
    nano: DiT, theirs: Any, tau: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = StepPolicy(FirstBlockCache(tau=tau))
    with policy.attach(nano):
        ours = nano.generate(**HOW)
    from diffusers import FirstBlockCacheConfig

    theirs.enable_cache(FirstBlockCacheConfig(threshold=tau))
    passes, branches = 0, [0] * STEPS

    def count(*_: Any) -> None:
        branches[passes] += 1

    for block in theirs.transformer_blocks:
        block.attn1.register_forward_hook(count)
        block.ff.register_forward_hook(count)

    def forward(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        nonlocal passes
        with theirs.cache_context("both halves"):
            out = theirs(x, timestep=t, class_labels=y).sample
        passes += 1
        return out

    monkeypatch.setitem(vars(nano), "forward", forward)
    torch.testing.assert_close(nano.generate(**HOW), ours, atol=1e-4, rtol=1e-4)
    assert branches == policy.tally.branches
    assert (min(branches) == 2) == (tau > 0)
