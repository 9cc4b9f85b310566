from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from modicum.apps.pixelgen.generator import Generator, locate, names
from modicum.apps.pixelgen.generator.colour import chroma, colours, luma
from modicum.apps.pixelgen.generator.enlarge import enlarged, reduced
from modicum.apps.pixelgen.generator.files import UPSCALER, save
from modicum.apps.pixelgen.generator.frames import conceal
from modicum.apps.pixelgen.generator.measure import lost_packets
from modicum.apps.pixelgen.generator.scene import scene_tokens
from modicum.apps.pixelgen.generator.train_upscaler import Upscaling, main, trainer
from modicum.apps.pixelgen.generator.upscale import Upscaler, interpolated
from modicum.errors import CheckpointError, OutputExists
from modicum.evaluate.images import psnr
from modicum.trainer import Moment

PICTURES = (
    torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    .repeat_interleave(7, 2)
    .repeat_interleave(6, 3)
)


def _strong(width: int = 8, depth: int = 2) -> Upscaler:
    """An upscaler that changes whatever it may change."""
    torch.manual_seed(0)
    upscaler = Upscaler(width, depth).eval()
    torch.nn.init.normal_(upscaler.leave.weight)
    return upscaler.requires_grad_(False)


def _small(pictures: Tensor, k: int) -> Tensor:
    return F.avg_pool2d(pictures, k, ceil_mode=True)


@settings(max_examples=15, deadline=None)
@given(k=st.integers(1, 5), height=st.integers(9, 35), width=st.integers(9, 36), seed=st.integers(0, 9))
def test_luma_that_arrived_is_kept_at_any_size(k: int, height: int, width: int, seed: int) -> None:
    pictures = PICTURES[..., :height, :width]
    mask = torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(seed)) > 0.3
    found = _strong()(_small(pictures, k), luma(pictures) * mask, mask, k)
    assert found.shape == pictures.shape
    assert 0 <= found.min() <= found.max() <= 1
    assert (luma(found) - luma(pictures)).abs()[mask].max() < 1e-5


def test_untrained_it_is_the_simple_way() -> None:
    mask = torch.rand(2, 1, 35, 36, generator=torch.Generator().manual_seed(1)) > 0.3
    for k in (1, 2, 4):
        y, c = interpolated(_small(PICTURES, k), luma(PICTURES), mask, k)
        assert torch.equal(
            Upscaler()(_small(PICTURES, k), luma(PICTURES), mask, k), colours(y.clamp(0, 1), c)
        )
        assert torch.equal(y, conceal(luma(PICTURES), mask))


@pytest.mark.parametrize("k", [2, 3, 4])
def test_the_simple_way_keeps_the_mean_colour_of_every_cell(k: int) -> None:
    """What bicubic interpolation alone does not."""
    whole, small = torch.ones(2, 1, 35, 36, dtype=torch.bool), _small(PICTURES, k)
    found = interpolated(small, luma(PICTURES), whole, k)[1]
    torch.testing.assert_close(F.avg_pool2d(found, k, ceil_mode=True), chroma(small), atol=1e-5, rtol=0)
    plain = F.interpolate(chroma(small), scale_factor=k, mode="bicubic")[:, :, :35, :36]
    assert (F.avg_pool2d(plain, k, ceil_mode=True) - chroma(small)).abs().max() > 1e-3


def test_true_colours_keep_their_means_and_painted_ones_need_not() -> None:
    whole, small = torch.ones(2, 1, 35, 36, dtype=torch.bool), _small(PICTURES, 4)
    for painted in (False, True):
        c = _strong().found(small, luma(PICTURES), whole, 4, painted)[1]
        moved = (F.avg_pool2d(c, 4, ceil_mode=True) - chroma(small)).abs().max()
        assert moved > 0.01 if painted else moved < 1e-5
        assert (c - interpolated(small, luma(PICTURES), whole, 4)[1]).abs().max() > 0.01


def test_at_full_size_colours_stay_and_are_not_looked_at() -> None:
    mask = torch.rand(2, 1, 35, 36, generator=torch.Generator().manual_seed(2)) > 0.3
    y, c = _strong().found(PICTURES, luma(PICTURES), mask, 1, True)
    assert torch.equal(c, chroma(PICTURES))
    grey = luma(PICTURES).expand(-1, 3, -1, -1)
    torch.testing.assert_close(_strong().found(grey, luma(PICTURES), mask, 1, True)[0], y)
    assert (y - conceal(luma(PICTURES), mask)).abs()[~mask].max() > 0.01


def test_far_from_what_arrived_the_painted_luma_stands() -> None:
    mask = torch.zeros(2, 1, 35, 36, dtype=torch.bool)
    mask[..., :10] = True
    y, _ = _strong().found(PICTURES, torch.zeros(2, 1, 35, 36), mask, 1, True)
    torch.testing.assert_close(y[..., 14:], luma(PICTURES)[..., 14:])
    assert (y[..., 10:14] - luma(PICTURES)[..., 10:14]).abs().max() > 0.01


def test_it_travels_with_its_generator(small: Generator, tmp_path: Path) -> None:
    small.upscaler = _strong()
    opened = Generator.load(save(small, tmp_path / "out", half=False))
    frames, told = luma(PICTURES), torch.zeros(2, 5, dtype=torch.int64)
    mask = torch.rand(2, 1, 35, 36, generator=torch.Generator().manual_seed(3)) > 0.2
    for reduce in (1, 2):
        torch.testing.assert_close(
            opened.generate(frames, mask, told, reduce=reduce),
            small.generate(frames, mask, told, reduce=reduce),
        )
    with_it = small.generate(frames, mask, told, reduce=2)
    whole = small.generate(frames, mask | True, told)
    small.upscaler = None
    assert not torch.allclose(small.generate(frames, mask, told, reduce=2), with_it, atol=0.01)
    assert torch.equal(small.generate(frames, mask | True, told), whole)  # nothing is left to do for it


@pytest.mark.parametrize("asked", [{"guidance": 2.0}, {"temperature": 1.0}])
def test_colours_that_were_asked_for_are_not_drawn_back(small: Generator, asked: dict[str, float]) -> None:
    seen = []

    class Watching(Upscaler):
        def found(self, *arguments: Any) -> tuple[Tensor, Tensor]:
            seen.append(arguments[-1])
            return super().found(*arguments)

    small.upscaler, whole = Watching(), torch.ones(2, 1, 35, 36, dtype=torch.bool)
    small.generate(
        luma(PICTURES), whole, torch.zeros(2, 5, dtype=torch.int64), reduce=2, **{"temperature": 0, **asked}
    )
    small.generate(luma(PICTURES), whole, torch.zeros(2, 5, dtype=torch.int64), reduce=2, temperature=0)
    assert seen == [False, True]


def test_a_damaged_upscaler_is_refused(small: Generator, tmp_path: Path) -> None:
    out = save(small, tmp_path / "out")
    save_file({"other": torch.zeros(1)}, out / UPSCALER)
    with pytest.raises(CheckpointError, match="no upscaler"):
        Generator.load(out)
    tensors = {name: value.clone() for name, value in Upscaler().state_dict().items()}
    save_file({**tensors, "leave.bias": torch.zeros(5)}, out / UPSCALER)
    with pytest.raises(CheckpointError, match=r"leave\.bias"):
        Generator.load(out)


def _bytes(count: int = 32) -> Tensor:
    """Colour follows luma exactly, so that an upscaler has something to find."""
    levels = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    y = F.interpolate(levels, scale_factor=2)
    return (255 * torch.cat((y, 0.5 * torch.ones_like(y), 1 - y), dim=1)).to(torch.uint8)


@pytest.mark.parametrize("step", [2, 3])
def test_the_loss_weighs_errors_of_luma_and_of_true_and_painted_colours(small: Generator, step: int) -> None:
    pictures, seen = _bytes(6), []

    class Upscaled(Upscaler):
        def found(self, *arguments: Any) -> tuple[Tensor, Tensor]:
            seen.append(arguments)
            return super().found(*arguments)

    generator = torch.Generator().manual_seed(0)
    loss = Upscaling(small)(Upscaled(), {"pictures": pictures}, Moment(step, 9, generator))
    given, frames, mask, k, painted = seen[0]
    true = _small(pictures / 255, k)
    assert (k, painted) == ((4, True), (2, False))[step - 2]
    assert torch.equal(given, true) != painted
    y, c = interpolated(given, frames, mask, k)
    off = c - chroma(pictures / 255)
    shown = torch.cat(
        (1.402 * off[:, 1:], -0.344136 * off[:, :1] - 0.714136 * off[:, 1:], 1.772 * off[:, :1]), 1
    )
    errors = (y - luma(pictures / 255)).square().mean(), shown.square().mean()
    expected = 300 * errors[0] + (100 if painted else 10_000) * errors[1]
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-7)


def test_training_learns_and_goes_on_where_it_was_killed(small: Generator, tmp_path: Path) -> None:
    def run(name: str, until: int) -> dict[str, Tensor]:
        training = trainer(_bytes(), small, tmp_path / name, 5)
        training.settings = training.settings.model_copy(update={"save_every": 3})

        def kill(record: object) -> None:
            if training.step == until:
                raise KeyboardInterrupt

        training.callbacks = (kill,)
        try:
            training.run()
        except KeyboardInterrupt:
            return {}
        return training.state_dict()

    run("killed", 4)
    resumed, straight = run("killed", -1), run("straight", -1)
    assert all(torch.equal(resumed[name], value) for name, value in straight.items())
    assert any(bool(value.any()) for name, value in straight.items() if name.startswith("leave"))


def test_the_command(small: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "images.npz", images=_bytes().permute(0, 2, 3, 1).numpy())
    save(small, tmp_path / "model")
    out = tmp_path / "model" / UPSCALER
    line = [
        "--images",
        str(tmp_path / "images.npz"),
        "--generator",
        str(tmp_path / "model"),
        "--out",
        str(out),
    ]
    line += ["--work", str(tmp_path / "work"), "--steps", "2"]
    assert main(line) == 0
    assert Generator.load(tmp_path / "model").upscaler is not None
    assert main(line) == OutputExists.exit_code


@pytest.fixture(scope="module", params=[name for name in names() if (locate(name) / UPSCALER).is_file()])
def shipped(request: pytest.FixtureRequest) -> Generator:
    return Generator.load(request.param)


@pytest.mark.parametrize("k", [2, 4])
def test_the_shipped_one_is_better_than_interpolation(shipped: Generator, photos: Tensor, k: int) -> None:
    assert shipped.upscaler is not None
    frames, whole = luma(photos), torch.ones(len(photos), 1, 32, 32, dtype=torch.bool)
    painted = Generator(shipped.network, shipped.steps).generate(
        *reduced(frames, whole, k), scene_tokens(photos)
    )
    for small, guessed in ((_small(photos, k), False), (painted, True)):
        learned = psnr(shipped.upscaler(small, frames, whole, k, guessed), photos)
        bicubic = F.interpolate(chroma(small), scale_factor=k, mode="bicubic")
        assert learned > psnr(colours(frames, bicubic), photos)
        assert learned > psnr(enlarged(small, frames, whole, k), photos)


@pytest.mark.parametrize(("run", "gain"), [(1, 1.0), (32, 0.1)])
def test_the_shipped_one_finds_lost_luma(shipped: Generator, photos: Tensor, run: int, gain: float) -> None:
    """Decibels before the mean of the neighbours."""
    mask = lost_packets(len(photos), 32, 0.2, run, seed=0)
    frames = luma(photos)
    painted = shipped.generate(frames * mask, mask, scene_tokens(photos))
    found, mean = (
        -10 * (y - frames)[~mask].square().mean().log10() for y in (luma(painted), conceal(frames, mask))
    )
    assert found > mean + gain
