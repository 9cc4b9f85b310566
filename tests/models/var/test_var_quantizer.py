from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from modicum.errors import InvalidSetting
from modicum.models.next_scale import Schedule
from modicum.models.var import VAR, MultiScaleQuantizer, VAEConfig
from modicum.models.var.quantizer import phi_index


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def _features(model: VAR) -> torch.Tensor:
    return torch.randn(2, model.config.vae.z_channels, *model.schedule.final)


def test_tokens_add_up_to_what_the_encoder_saw(any_model: VAR) -> None:
    quantizer = any_model.vae.quantize
    with torch.no_grad():
        tokens, running = quantizer.encode(_features(any_model))
        for ours, encoders in zip(quantizer.running(tokens), running, strict=True):
            torch.testing.assert_close(ours, encoders)


def test_each_token_is_the_nearest_code_of_the_residual(model: VAR) -> None:
    quantizer, features = model.vae.quantize, _features(model)
    tokens, running = quantizer.encode(features)
    with torch.no_grad():
        for scale, index in enumerate(tokens):
            before = running[scale - 1] if scale else torch.zeros_like(features)
            rest = F.adaptive_avg_pool2d(features - before, quantizer.schedule.sizes[scale])
            distance = torch.cdist(rest.flatten(2).transpose(1, 2), quantizer.embedding.weight[None])
            torch.testing.assert_close(distance.gather(2, index[..., None])[..., 0], distance.amin(-1))


def test_a_codebook_that_holds_the_residuals_leaves_nothing() -> None:
    config = VAEConfig(vocab_size=9, z_channels=2, share_quant_resi=1, quant_resi=0.0)
    quantizer = MultiScaleQuantizer(config, Schedule.square((3,)))
    features = torch.randn(1, 2, 3, 3)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(features[0].flatten(1).T)
    tokens, running = quantizer.encode(features)
    assert torch.equal(tokens[0], torch.arange(9)[None])
    torch.testing.assert_close(running[0], features)


def test_next_input_is_what_the_teacher_reads(model: VAR) -> None:
    steps = list(model.steps([1, 2], seed=0))
    tokens = [step.tokens for step in steps]
    maps = [step.next_map.flatten(2).transpose(1, 2) for step in steps if step.next_map is not None]
    with torch.no_grad():
        torch.testing.assert_close(model.vae.quantize.teacher_input(tokens), torch.cat(maps, dim=1))


@pytest.mark.parametrize(
    ("count", "maps", "indices"),
    [
        (4, 10, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]),
        (4, 5, [0, 1, 2, 2, 3]),  # the middle map lies between two ticks; rounding decides
        (4, 4, [0, 1, 2, 3]),
        (1, 3, [0, 0, 0]),
        (2, 1, [0]),
    ],
)
def test_which_convolution_serves_which_map(count: int, maps: int, indices: list[int]) -> None:
    schedule = Schedule.square(range(1, maps + 1))
    assert [phi_index(count, schedule.progress(scale)) for scale in range(maps)] == indices


def test_blend_uses_the_size_of_the_ratio_only() -> None:
    config = VAEConfig(vocab_size=4, z_channels=2, share_quant_resi=1, quant_resi=-0.25)
    phi = MultiScaleQuantizer(config, Schedule.square((2,))).phi(0)
    h = torch.randn(1, 2, 2, 2)
    with torch.no_grad():
        conv = F.conv2d(h, phi.get_parameter("weight"), phi.get_parameter("bias"), padding=1)
        torch.testing.assert_close(phi(h), 0.75 * h + 0.25 * conv)


def test_features_of_another_size(model: VAR) -> None:
    with pytest.raises(InvalidSetting, match="do not fit"):
        model.vae.encode(torch.zeros(1, 3, 32, 32))
