from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from modicum.apps.pixelgen.generator import Generator
from modicum.apps.pixelgen.generator.colour import luma
from modicum.apps.pixelgen.generator.diffusion import noisy, paint, velocity
from modicum.apps.pixelgen.generator.enlarge import reduced
from modicum.apps.pixelgen.generator.frames import conceal
from modicum.apps.pixelgen.prompt import SensorTokens
from modicum.errors import InvalidSetting
from modicum.evaluate.images import psnr

SILENT = torch.zeros(2, len(SensorTokens.sizes), dtype=torch.int64)


def _frames(height: int = 40, width: int = 52, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.rand(2, 1, height, width, generator=generator)
    return frames, torch.rand(2, 1, height, width, generator=generator) > 0.2


def test_ddim_with_the_true_velocity_reaches_the_picture() -> None:
    x0, noise = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    torch.testing.assert_close(noisy(x0, noise, torch.zeros(2)), x0)
    torch.testing.assert_close(noisy(x0, noise, torch.ones(2)), noise, atol=1e-6, rtol=0)
    for steps in (1, 2, 7):
        painted = paint(lambda x, t: velocity(x0, noise, t), noise, steps)
        torch.testing.assert_close(painted, x0, atol=1e-5, rtol=0)


def test_ddim_asks_at_equal_angles_down_to_the_last_step() -> None:
    asked = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        asked.append(t.tolist())
        return torch.zeros_like(x)

    paint(network, torch.zeros(2, 1, 1, 1), 4)
    assert asked == [[1, 1], [0.75, 0.75], [0.5, 0.5], [0.25, 0.25]]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(height=st.integers(1, 50), width=st.integers(1, 70))
def test_any_frame_gives_a_picture_of_its_size_and_luma(small: Generator, height: int, width: int) -> None:
    frames, mask = _frames(height, width, seed=height)
    pictures = small.generate(frames, mask, SILENT, seed=3)
    assert pictures.shape == (2, 3, height, width)
    assert 0 <= pictures.min() <= pictures.max() <= 1
    assert ((luma(pictures) - frames).abs()[mask] < 1e-5).all()  # 100 dB


def test_a_seed_is_a_picture(small: Generator) -> None:
    frames, mask = _frames()
    first, again, other = (small.generate(frames, mask, SILENT, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=0.01)


def test_without_temperature_all_seeds_paint_the_same(small: Generator) -> None:
    frames, mask = _frames()
    first, other = (small.generate(frames, mask, SILENT, temperature=0, seed=seed) for seed in (1, 2))
    assert torch.equal(first, other)


def test_what_stands_in_the_gaps_does_not_matter(small: Generator) -> None:
    frames, mask = _frames()
    painted = small.generate(frames, mask, SILENT)
    assert torch.equal(painted, small.generate(torch.where(mask, frames, 0.9), mask, SILENT))
    assert not torch.allclose(luma(painted)[~mask], frames[~mask], atol=0.05)


def test_luma_is_painted_where_it_was_lost_and_only_there(small: Generator) -> None:
    frames, mask = _frames()
    difference = (luma(small.generate(frames, mask, SILENT)) - conceal(frames, mask)).abs()
    assert difference[mask].max() < 1e-5
    assert difference[~mask].mean() > 0.01


def test_a_constant_frame_has_no_seams(small: Generator) -> None:
    frames = torch.full((2, 1, 96, 128), 0.4)
    pictures = small.generate(frames, torch.ones_like(frames, dtype=torch.bool), SILENT)
    assert (luma(pictures) - 0.4).abs().max() < 1e-6
    assert psnr(luma(pictures), frames) > 35


def test_tiles_agree_where_they_overlap(small: Generator) -> None:
    """Colour must not jump more from tile to tile than it does inside a tile."""
    frames = torch.full((1, 1, 32, 96), 0.5)
    painted = small.generate(
        frames, torch.ones_like(frames, dtype=torch.bool), SILENT[:1], temperature=0, stride=4
    )
    jumps = painted.diff(dim=-1).abs().amax((0, 1, 2))
    glued = torch.cat([small.generate(part, torch.ones_like(part, dtype=torch.bool), SILENT[:1], temperature=0)
                       for part in frames.split(32, -1)], dim=-1)  # fmt: skip
    rims = glued.diff(dim=-1).abs().amax((0, 1, 2))[[31, 63]]
    assert jumps.max() < rims.max()


def test_readings_reach_the_picture_and_guidance_exaggerates_them(small: Generator) -> None:
    frames, mask = _frames()
    with torch.no_grad():
        small.network.y_embedder.embedding_table.weight.normal_(generator=torch.Generator().manual_seed(0))
    told = SILENT + 1
    plain, one, two = (
        small.generate(frames, mask, tokens, guidance=guidance, steps=1)
        for tokens, guidance in ((SILENT, 1.0), (told, 1.0), (told, 2.0))
    )
    assert (one - plain).abs().mean() > 0.005
    assert (two - plain).abs().mean() > (one - plain).abs().mean()
    torch.testing.assert_close(small.generate(frames, mask, told, guidance=0.0, steps=1), plain)


@pytest.mark.parametrize(("height", "width", "reduce"), [(97, 66, 2), (70, 131, 3)])
def test_reduced_painting_keeps_size_and_luma(small: Generator, height: int, width: int, reduce: int) -> None:
    frames, mask = _frames(height, width)
    pictures = small.generate(frames, mask, SILENT, reduce=reduce)
    assert pictures.shape == (2, 3, height, width)
    assert ((luma(pictures) - frames).abs()[mask] < 1e-5).all()
    lost = (luma(pictures) - conceal(frames, mask)).abs()[~mask]
    assert (lost < 1e-5).float().mean() > 0.95  # a neighbour arrived nearly everywhere


def test_reducing_averages_what_arrived() -> None:
    frames = torch.arange(16.0).view(1, 1, 4, 4)
    mask = torch.ones_like(frames, dtype=torch.bool)
    mask[..., 0, 0] = mask[..., 2:, 2:] = False
    small_frames, small_mask = reduced(frames, mask, 2)
    assert small_mask.flatten().tolist() == [True, True, True, False]
    torch.testing.assert_close(small_frames.flatten()[:3], torch.tensor([10 / 3, 4.5, 10.5]))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"frames": torch.rand(2, 3, 40, 52)}, "do not fit"),
        ({"mask": torch.ones(2, 1, 40, 52)}, "do not fit"),
        ({"tokens": SILENT[:, :2]}, "per frame"),
        ({"tokens": SILENT + 6}, "per frame"),
        ({"tokens": SILENT - 1}, "per frame"),
        ({"steps": 0}, "out of range"),
        ({"temperature": 1.5}, "out of range"),
        ({"stride": 17}, "out of range"),
        ({"reduce": 0}, "out of range"),
    ],
)
def test_what_does_not_fit_is_refused(small: Generator, changed: dict[str, Any], message: str) -> None:
    frames, mask = _frames()
    given = {"frames": frames, "mask": mask, "tokens": SILENT, **changed}
    with pytest.raises(InvalidSetting, match=message):
        small.generate(**given)
