from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from modicum.errors import InvalidSetting
from modicum.models.next_scale import FullCache, SelectiveCache
from modicum.models.var import VAR, VARConfig

LABELS = [0, 3, 4]
# millions of parameters of the published models
PUBLISHED = {"d16": 310.3, "d20": 600.9, "d24": 1033.4, "d30": 2010.0, "d36": 2353.9}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        model = VAR(VARConfig.preset(name))
    count = sum(parameter.numel() for parameter in model.transformer.parameters())
    assert count / 1e6 == pytest.approx(PUBLISHED[name], rel=1e-3)


def test_published_token_counts() -> None:
    assert VARConfig.preset("d16").schedule.total == 680
    assert VARConfig.preset("d36").schedule.total == 2240
    assert [VARConfig.preset(name).pixels for name in ("d30", "d36")] == [256, 512]


def test_cached_steps_equal_one_masked_pass(any_model: VAR) -> None:
    model, labels = any_model, torch.tensor(LABELS)
    steps = list(model.steps(labels, cfg=2.0, top_k=0, top_p=0, seed=1))
    inputs = model.vae.quantize.teacher_input([step.tokens for step in steps])
    with torch.no_grad():
        given = model.transformer(labels, inputs)
        none = model.transformer(torch.full_like(labels, model.transformer.null_label), inputs)
    for step in steps:
        span = model.schedule.span(step.scale)
        t = 2.0 * model.schedule.progress(step.scale)
        want = (1 + t) * given[:, span] - t * none[:, span]
        torch.testing.assert_close(step.logits, want, atol=1e-4, rtol=1e-4)


def test_maps_do_not_see_later_maps(any_model: VAR) -> None:
    schedule, transformer = any_model.schedule, any_model.transformer
    inputs = torch.randn(2, schedule.total - schedule.tokens[0], any_model.config.vae.z_channels)
    labels = torch.tensor([1, 2])
    for scale in range(1, len(schedule)):
        changed = inputs.clone()
        start = schedule.offsets[scale] - schedule.tokens[0]
        changed[:, start] += 3  # the first token of the map
        with torch.no_grad():
            before, after = transformer(labels, inputs), transformer(labels, changed)
        moved = (before - after).abs().amax(dim=(0, 2)) > 1e-6
        assert not moved[: schedule.offsets[scale]].any()
        assert moved[schedule.span(scale)].all()  # the whole map sees its first token


def test_a_prefix_of_maps_can_be_taught_alone(model: VAR) -> None:
    inputs = torch.randn(2, model.schedule.total - 1, model.config.vae.z_channels)
    labels = torch.tensor([1, 2])
    with torch.no_grad():
        short = model.transformer(labels, inputs[:, : model.schedule.offsets[3] - 1])
        torch.testing.assert_close(short, model.transformer(labels, inputs)[:, : short.shape[1]])


def test_no_guidance_is_the_conditional_model_alone(model: VAR) -> None:
    cache = FullCache()
    steps = list(model.steps(LABELS, cfg=0, seed=1, top_k=0, top_p=0, cache=cache))
    assert cache.held(0)[0].shape[0] == len(LABELS)
    inputs = model.vae.quantize.teacher_input([step.tokens for step in steps])
    with torch.no_grad():
        want = model.transformer(torch.tensor(LABELS), inputs)
    torch.testing.assert_close(torch.cat([step.logits for step in steps], 1), want, atol=1e-4, rtol=1e-4)


def test_open_filters_keep_every_code(model: VAR) -> None:
    for top_k in (0, model.config.vae.vocab_size, 10_000):
        for step in model.steps(LABELS, top_k=top_k, top_p=0, seed=0):
            assert torch.equal(step.filtered, step.logits)


def test_same_seed_same_image(model: VAR) -> None:
    first, second, other = (model.generate(LABELS, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.shape == (3, 3, 10, 10)
    assert first.min() >= 0
    assert first.max() <= 1


def test_an_image_with_its_own_seed_does_not_know_its_neighbours(model: VAR) -> None:
    together = model.generate(LABELS, seed=[5, 6, 7])
    alone = model.generate(LABELS[1], seed=[6])
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=0)


def test_counts_and_random_labels(model: VAR) -> None:
    assert len(model.generate([1, 2], count=3, seed=0)) == 6
    assert torch.equal(model.generate(count=2, seed=4), model.generate(None, count=2, seed=4))
    assert len(model.generate(count=2, seed=[4, 5])) == 2
    assert len(model.generate(model.transformer.null_label, seed=0)) == 1


def test_smooth_choice_blends_codes(model: VAR) -> None:
    plain = list(model.steps(LABELS, seed=2, top_k=0, top_p=0))
    smooth = list(model.steps(LABELS, seed=2, top_k=0, top_p=0, more_smooth=True))
    assert torch.equal(plain[0].tokens, smooth[0].tokens)  # the draw itself comes first in the stream
    assert not torch.allclose(plain[0].f_hat, smooth[0].f_hat)
    assert smooth[-1].f_hat.isfinite().all()
    again = list(model.steps(LABELS, seed=2, top_k=0, top_p=0, more_smooth=True))
    assert torch.equal(smooth[-1].f_hat, again[-1].f_hat)


@pytest.mark.parametrize(
    "options",
    [
        {"labels": [5 + 1]},
        {"labels": [-1]},
        {"labels": []},
        {"labels": [1], "count": 0},
        {"labels": [1], "cfg": -1.0},
        {"labels": [1, 2], "seed": [1, 2, 3]},
    ],
)
def test_wrong_requests(model: VAR, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting):
        model.generate(**options)


@pytest.mark.parametrize("store_last", [True, False])
@pytest.mark.parametrize("key_dtype", ["attention", "computed"])
def test_free_savings_change_nothing(any_model: VAR, store_last: bool, key_dtype: Any) -> None:
    want = any_model.generate(LABELS, seed=3, cache=FullCache(store_last=True, key_dtype="computed"))
    for kind in (FullCache, SelectiveCache):
        cache = kind(store_last=store_last, key_dtype=key_dtype)
        assert torch.equal(any_model.generate(LABELS, seed=3, cache=cache), want)


def test_a_cache_serves_one_generation_after_another(model: VAR) -> None:
    cache = FullCache()
    first = model.generate(LABELS, seed=3, cache=cache)
    model.generate([1], seed=9, cache=cache)
    assert torch.equal(model.generate(LABELS, seed=3, cache=cache), first)


@pytest.mark.parametrize("kind", [FullCache, SelectiveCache])
def test_bytes_follow_the_formula_at_every_map(model: VAR, kind: type[Any]) -> None:
    config, schedule = model.config, model.schedule
    cache = kind(store_last=True, key_dtype="computed")  # float32 keys, half-precision values
    with torch.autocast("cpu", torch.bfloat16):
        for step in model.steps(LABELS, cfg=1.5, cache=cache):
            tokens = schedule.offsets[step.scale + 1]
            assert cache.nbytes == tokens * config.embed_dim * 6 * config.depth * 2 * len(LABELS)
    assert cache.peak_nbytes >= cache.nbytes


def test_bytes_with_the_free_savings(model: VAR) -> None:
    config, schedule, cache = model.config, model.schedule, FullCache()
    with torch.autocast("cpu", torch.bfloat16):
        for step in model.steps(LABELS, cfg=1.5, cache=cache):
            tokens = schedule.offsets[min(step.scale + 1, len(schedule) - 1)]
            assert cache.nbytes == tokens * config.embed_dim * 4 * config.depth * 2 * len(LABELS)
    transient = schedule.total * config.embed_dim * 4 * 2 * len(LABELS)  # one layer sees the last map
    assert cache.peak_nbytes == cache.nbytes + transient


def test_half_precision_stays_close(model: VAR) -> None:
    want = next(iter(model.steps(LABELS, top_k=1))).logits
    with torch.autocast("cpu", torch.bfloat16):
        auto = next(iter(model.steps(LABELS, top_k=1))).logits
    model.transformer.bfloat16()
    half = next(iter(model.steps(LABELS, top_k=1))).logits
    spread = want.std()
    for got in (auto, half):
        assert got.dtype == torch.float32
        assert (got - want).abs().mean() < 0.1 * spread
    assert model.generate(LABELS, seed=0).isfinite().all()


def test_labels_are_dropped_in_training_only(model: VAR) -> None:
    inputs = torch.randn(64, model.schedule.total - 1, model.config.vae.z_channels)
    labels = torch.full((64,), 2)
    transformer = model.transformer

    def differing(first: Tensor, second: Tensor) -> int:
        return int(((first - second).abs().amax(dim=(1, 2)) > 1e-4).sum())

    with torch.no_grad():
        want = transformer(labels, inputs)
        assert torch.equal(want, transformer(labels, inputs))
        torch.manual_seed(0)
        dropped = differing(want, transformer.train()(labels, inputs))
    assert 1 <= dropped <= 20  # of 64, at a rate of 0.1


def test_images_in_zero_to_one(model: VAR) -> None:
    images = torch.rand(2, 3, 10, 10)
    tokens = model.encode(images)
    assert [t.shape for t in tokens] == [(2, n) for n in model.schedule.tokens]
    torch.testing.assert_close(model.decode(tokens), (model.vae.decode(tokens) + 1) / 2)
    assert torch.equal(model.encode(images)[0], model.vae.encode(images * 2 - 1)[0])
