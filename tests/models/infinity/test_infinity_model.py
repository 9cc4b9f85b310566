from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modicum.errors import InvalidSetting
from modicum.models.infinity import BSQVAEConfig, Infinity, InfinityConfig, Resolution, TextFeatures, bsq
from modicum.models.next_scale import FullCache, Schedule, SelectiveCache

SQUARE = Resolution.of(1.0).prefix(4)
OPEN: dict[str, Any] = {"top_k": 0, "top_p": 0}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("name", "millions"), [("2b", 2204.6), ("8b", 8375.8)])
def test_published_parameter_counts(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = Infinity(InfinityConfig.preset(name), torch.bfloat16)
    assert _count(model.transformer) / 1e6 == pytest.approx(millions, abs=0.05)
    assert model.dtype == torch.bfloat16
    assert {model.transformer.head.weight.dtype, model.vae.decoder.conv_in.weight.dtype} == {torch.float32}


@pytest.mark.parametrize("name", ["2b", "8b"])
def test_full_size_without_looking_at_a_value(name: str) -> None:
    """On the meta device every shape is true and every question for a value is an error."""
    config = InfinityConfig.preset(name).model_copy(update={"depth": 1})
    with torch.device("meta"):
        model = Infinity(config, torch.bfloat16)
        text = TextFeatures(torch.zeros(12, 2048), (5, 7))
    cache, token = FullCache(store_last=True, key_dtype="computed"), config.embed_dim * 6 * 4
    for step in model.steps(text, cache=cache):
        assert cache.nbytes == model.schedule.offsets[step.scale + 1] * token
        assert step.logits.shape == (2, model.schedule.tokens[step.scale], 2 * config.d_vae)
    assert model.picture(step.summed).shape == (2, 3, 1024, 1024)
    assert model.generate(text, ratio=1.5, pixels="0.25M").shape == (2, 3, 624, 416)


def test_cached_steps_equal_one_masked_pass(
    model: Infinity, text: TextFeatures, some_text: Any, any_resolution: Resolution
) -> None:
    _cached_equals_masked(model, text, some_text(model, 4, seed=1), any_resolution)


def test_cached_steps_equal_one_masked_pass_in_every_model(any_model: Infinity, some_text: Any) -> None:
    text, negative = some_text(any_model, 5, 3), some_text(any_model, 4, seed=1)
    _cached_equals_masked(any_model, text, negative, SQUARE)


def _cached_equals_masked(
    model: Infinity, text: TextFeatures, negative: TextFeatures, resolution: Resolution
) -> None:
    steps = list(
        model.steps(text, negative=negative, resolution=resolution, cfg=2.5, tau=0.7, seed=1, **OPEN)
    )
    inputs = model.teacher_input([step.bits for step in steps], resolution)
    with torch.no_grad():
        given, without = (
            model.transformer(model.transformer.condition(*rows.padded()), inputs, resolution)
            for rows in (text, negative.repeat(2))
        )
    want = (2.5 * given - 1.5 * without) / 0.7
    torch.testing.assert_close(torch.cat([step.logits for step in steps], 1), want, atol=2e-4, rtol=1e-4)


def test_maps_do_not_see_later_maps(any_model: Infinity, some_text: Any) -> None:
    schedule, transformer = SQUARE.schedule, any_model.transformer
    condition = transformer.condition(*some_text(any_model, 4, 2).padded())
    inputs = torch.randn(2, schedule.total - 1, any_model.config.d_vae)
    with torch.no_grad():
        before = transformer(condition, inputs, SQUARE)
        for scale in range(1, len(schedule)):
            changed = inputs.clone()
            changed[:, schedule.offsets[scale] - 1] += 3  # the first token of the map
            moved = (before - transformer(condition, changed, SQUARE)).abs().amax(dim=(0, 2)) > 1e-6
            assert not moved[: schedule.offsets[scale]].any()
            assert moved[schedule.span(scale)].all()  # the whole map sees its first token


def test_rows_do_not_see_each_other_nor_padding(any_model: Infinity, some_text: Any) -> None:
    text = some_text(any_model, 7, 2, 4)
    short = TextFeatures.of([text.values.split(text.lengths)[1]])  # alone it is not padded
    together = list(any_model.steps(text, resolution=SQUARE, seed=[3, 4, 5]))
    alone = list(any_model.steps(short, resolution=SQUARE, seed=[4]))
    for many, one in zip(together, alone, strict=True):
        assert torch.equal(many.bits[1:2], one.bits)
        torch.testing.assert_close(many.logits[1:2], one.logits, atol=1e-4, rtol=1e-4)


def test_no_guidance_is_the_conditional_model_alone(model: Infinity, text: TextFeatures) -> None:
    cache = FullCache()
    first = list(model.steps(text, resolution=SQUARE, cfg=1, seed=1, cache=cache))
    assert cache.held(0)[0].shape[0] == 2  # no unconditional rows
    mixed = list(model.steps(text, resolution=SQUARE, cfg=[1, 1, 1, 1.0000001], seed=1))  # with such rows
    for one, other in zip(first, mixed, strict=True):
        torch.testing.assert_close(one.logits, other.logits, atol=1e-4, rtol=1e-4)


def test_no_guidance_at_some_maps(model: Infinity, text: TextFeatures) -> None:
    plain, some = (
        next(iter(model.steps(text, resolution=SQUARE, cfg=cfg, seed=1))) for cfg in (1, [1, 3, 3, 3])
    )
    torch.testing.assert_close(plain.logits, some.logits, atol=1e-5, rtol=1e-5)


def test_leading_away_from_the_prompt_itself_changes_nothing(any_model: Infinity, some_text: Any) -> None:
    text = some_text(any_model, 6, 3)
    plain = list(any_model.steps(text, resolution=SQUARE, cfg=1, top_k=1))
    away = list(any_model.steps(text, negative=text, resolution=SQUARE, cfg=4, top_k=1))
    for one, other in zip(plain, away, strict=True):
        torch.testing.assert_close(one.logits, other.logits, atol=1e-3, rtol=1e-3)


def test_guidance_leads_away_from_the_learned_text(model: Infinity, text: TextFeatures) -> None:
    learned = TextFeatures.of([model.transformer.cfg_uncond[:length] for length in text.lengths])
    default, given = (
        list(model.steps(text, negative=negative, resolution=SQUARE, seed=0)) for negative in (None, learned)
    )
    assert all(torch.equal(one.logits, other.logits) for one, other in zip(default, given, strict=True))


def test_text_is_looked_at(model: Infinity, text: TextFeatures) -> None:
    first, second = (
        next(iter(model.steps(rows, resolution=SQUARE, cfg=1)))
        for rows in (text, replace(text, values=text.values.flip(1)))
    )
    assert (first.logits - second.logits).abs().amax(dim=(1, 2)).min() > 1e-3


def test_keys_of_the_text_are_computed_once_or_every_time(model: Infinity, text: TextFeatures) -> None:
    calls: list[int] = []
    for block in model.transformer.blocks:
        block.ca.mat_kv.register_forward_hook(lambda module, inputs, output: calls.append(1))
    images = {}
    for kind, passes in (("once", 1), ("recompute", len(SQUARE.schedule))):
        calls.clear()
        images[kind] = model.generate(text, resolution=SQUARE, seed=2, text_kv=kind)
        assert len(calls) == passes * model.config.depth
    assert torch.equal(images["once"], images["recompute"])


def test_rounding_of_text_moves_logits_a_little(model: Infinity, text: TextFeatures) -> None:
    exact, rounded = (
        next(iter(model.steps(text, resolution=SQUARE, round_text=rounded))) for rounded in (False, True)
    )
    distance = (exact.logits - rounded.logits).abs().max()
    assert 0 < distance < 0.05 * exact.logits.std()


def test_blocks_in_bfloat16_stay_close(model: Infinity, text: TextFeatures) -> None:
    want = next(iter(model.steps(text, resolution=SQUARE))).logits
    model.transformer.blocks.bfloat16()
    cache = FullCache()
    got = next(iter(model.steps(text, resolution=SQUARE, cache=cache))).logits
    assert got.dtype == torch.float32
    assert (got - want).abs().mean() < 0.1 * want.std()
    assert {tensor.dtype for tensor in cache.held(0)} == {torch.bfloat16}
    assert model.generate(text, resolution=SQUARE, seed=0).isfinite().all()
    whole = model.bfloat16()
    assert whole.generate(text, resolution=SQUARE, seed=0).dtype == torch.float32


@pytest.mark.parametrize("name", ["plain", "patchify"])
@pytest.mark.parametrize("half", [True, False])
def test_bytes_follow_the_formula_at_every_map(make_tiny: Any, some_text: Any, name: str, half: bool) -> None:
    model = make_tiny(name)
    model.transformer.blocks.to(torch.bfloat16 if half else torch.float32)
    channels, depth = model.config.embed_dim, model.config.depth
    text, rows = some_text(model, 4, 4, 4), 6  # with guidance
    for original in (True, False):
        # as the original counts: float32 keys, the last map too
        cache = FullCache(store_last=original, key_dtype="computed" if original else "attention")
        per_channel = 8 if not half else 6 if original else 4
        for step in model.steps(text, resolution=SQUARE, cache=cache):
            held = step.scale + 1 if original else min(step.scale + 1, len(SQUARE.schedule) - 1)
            tokens = SQUARE.schedule.offsets[held]
            assert cache.nbytes == tokens * channels * per_channel * depth * rows


def test_published_cache_sizes() -> None:
    for name, prefix, whole in (("2b", 4818.75, 7890.75), ("8b", 10540.99, 17261.0)):
        config, schedule = InfinityConfig.preset(name), Resolution.of().schedule
        token = config.embed_dim * 6 * config.depth * 2 / 2**20  # float32 keys, bfloat16 values, guidance
        assert schedule.offsets[-2] * token == pytest.approx(prefix, abs=0.1)
        assert schedule.total * token == pytest.approx(whole, abs=0.1)


@pytest.mark.parametrize("store_last", [True, False])
def test_free_savings_change_nothing(model: Infinity, text: TextFeatures, store_last: bool) -> None:
    want = model.generate(text, resolution=SQUARE, seed=3)
    for kind in (FullCache, SelectiveCache):
        cache = kind(store_last=store_last, key_dtype="computed")
        assert torch.equal(model.generate(text, resolution=SQUARE, seed=3, cache=cache), want)


def test_same_seed_same_image(any_model: Infinity, some_text: Any) -> None:
    text = some_text(any_model, 4, 6)
    first, second, other = (any_model.generate(text, resolution=SQUARE, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    side = 6 * any_model.config.pixels_per_token
    assert first.shape == (2, any_model.config.vae.in_channels, side, side)
    assert first.min() >= 0
    assert first.max() <= 1


def test_several_images_of_a_prompt(model: Infinity, text: TextFeatures, some_text: Any) -> None:
    four = model.generate(text, count=2, resolution=SQUARE, seed=[1, 2, 3, 4])
    torch.testing.assert_close(four[1:2], model.generate(some_text(model, 5), resolution=SQUARE, seed=[2]))
    negative = some_text(model, 2, 6, seed=3)
    away = model.generate(text, negative=negative, count=2, resolution=SQUARE, seed=[1, 2, 3, 4])
    second, its_own = (TextFeatures.of([rows.values.split(rows.lengths)[1]]) for rows in (text, negative))
    torch.testing.assert_close(
        away[3:], model.generate(second, negative=its_own, resolution=SQUARE, seed=[4])
    )


def test_ratio_and_pixels_choose_the_maps(model: Infinity, some_text: Any) -> None:
    text = some_text(model, 3)
    for settings, size in (({}, (16, 16)), ({"ratio": 1.4}, (20, 15)), ({"ratio": 0.51}, (11, 22))):
        image = model.generate(text, top_k=1, cfg=1, **settings)
        assert image.shape[-2:] == tuple(model.config.pixels_per_token * side for side in size)


def test_filters(model: Infinity, text: TextFeatures) -> None:
    *_, greedy = model.steps(text, resolution=SQUARE, top_k=1)
    *_, certain = model.steps(text, resolution=SQUARE, top_p=0.5)  # only what is likelier than a half
    assert torch.equal(greedy.bits, certain.bits)
    pairs = greedy.logits.unflatten(-1, (-1, 2))
    likelier = bsq.unpatchify(pairs[..., 1] > pairs[..., 0], SQUARE.schedule.final, model.config.patch)
    assert torch.equal(greedy.bits, likelier)
    open_, two = (list(model.steps(text, resolution=SQUARE, seed=0, top_p=0, top_k=k)) for k in (0, 900))
    assert torch.equal(open_[-1].summed, two[-1].summed)


def test_frequency_of_bits_follows_the_logits(model: Infinity, some_text: Any) -> None:
    text = some_text(model, 3).repeat(2000)
    step = next(iter(model.steps(text, resolution=SQUARE, cfg=1, seed=0, **OPEN)))
    want = step.logits[0, 0].unflatten(-1, (-1, 2)).softmax(-1)[:, 1]
    torch.testing.assert_close(step.bits[:, 0, 0].float().mean(0), want, atol=0.05, rtol=0)


def test_images_to_bits_and_back(any_model: Infinity) -> None:
    side = 6 * any_model.config.pixels_per_token
    images = torch.rand(2, any_model.config.vae.in_channels, side, side)
    bits = any_model.encode(images, SQUARE)
    sizes = bsq.grid(SQUARE.schedule, any_model.config.patch)
    assert [tuple(b.shape[1:3]) for b in bits] == sizes
    assert torch.equal(any_model.decode(bits), any_model.decode(bits, SQUARE))
    coarse = any_model.decode(bits[:2], SQUARE)
    assert coarse.shape == images.shape
    with pytest.raises(InvalidSetting, match="do not fit maps"):
        any_model.encode(images[..., :-1], SQUARE)


def test_the_ratio_of_an_image_gives_its_maps(model: Infinity) -> None:
    bits = model.encode(torch.rand(1, 3, 40, 30))
    assert [tuple(b.shape[1:3]) for b in bits] == list(Resolution.of(1.333, "0.06M").schedule.sizes)


WRONG: list[dict[str, Any]] = [
    {"count": 0},
    {"cfg": -1.0},
    {"cfg": [3.0, 3.0]},
    {"tau": 0.0},
    {"tau": [1.0, 1.0, 1.0, -1.0]},
    {"tau": float("nan")},
    {"seed": [1, 2, 3]},
    {"resolution": None, "ratio": -1.0},
    {"resolution": None, "pixels": "2M"},
    {"resolution": Resolution(Schedule.square([1] * 16), (1, 1))},
    {"resolution": Resolution(Schedule.square([2, 4]), (4, 4))},
]


@pytest.mark.parametrize("options", WRONG, ids=lambda options: ",".join(options))
def test_wrong_requests(model: Infinity, text: TextFeatures, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting):
        model.generate(text, **{"resolution": SQUARE, **options})


def test_fresh_weights_start_quiet(some_text: Any) -> None:
    torch.manual_seed(0)
    vae = BSQVAEConfig(base_ch=24, ch_mult=(1,), patch_size=1)
    sizes: dict[str, Any] = {"embed_dim": 64, "depth": 2, "num_heads": 4, "text_channels": 256}
    model = Infinity(InfinityConfig(**sizes, vae=vae))
    gates = [block.ada_gss[0, 0, :2].abs().max() for block in model.transformer.blocks]
    assert max(gates) < 1e-4
    step = next(iter(model.steps(some_text(model, 3), resolution=SQUARE, cfg=1)))
    assert step.logits.abs().max() < 0.2


def test_gradients_reach_every_parameter_of_the_transformer(any_model: Infinity, some_text: Any) -> None:
    text = some_text(any_model, 4, 2)
    condition = any_model.transformer.condition(*text.padded())
    inputs = torch.randn(2, SQUARE.schedule.total - 1, any_model.config.d_vae)
    any_model.transformer(condition, inputs, SQUARE).square().mean().backward()
    without = {
        name
        for name, parameter in any_model.transformer.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    }
    assert without == {"cfg_uncond"}  # stands for "no text", which nobody asked for here


def test_levels_are_told_apart(model: Infinity, text: TextFeatures) -> None:
    steps: list[Tensor] = [step.logits for step in model.steps(text, resolution=SQUARE, top_k=1)]
    with torch.no_grad():
        model.transformer.lvl_embed.weight[2] += 1
    again = [step.logits for step in model.steps(text, resolution=SQUARE, top_k=1)]
    same = [torch.equal(one, other) for one, other in zip(steps, again, strict=True)]
    assert same[:3] == [True, True, False]
    assert all(a.shape[1] < b.shape[1] for a, b in pairwise(steps))
