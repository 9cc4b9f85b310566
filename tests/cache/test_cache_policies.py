"""Policies on models: fitting, attaching, saving, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modicum import zoo
from modicum.allocate.cache_size import kv_nbytes
from modicum.cache import CacheMethod, CachePolicy, policy_from_json
from modicum.cache.eviction import EvictingCache, EvictionMethod
from modicum.cache.full import Full
from modicum.cache.h2o import H2O
from modicum.cache.pyramidkv import PyramidKV
from modicum.cache.scalekv import ScaleKV
from modicum.cache.sliding import Sliding
from modicum.cache.snapkv import SnapKV
from modicum.cache.streaming import Streaming
from modicum.errors import CheckpointError, InvalidSetting, UnsupportedModel, UnusableData
from modicum.method import Context, build
from modicum.models.anatomy import Anatomy
from modicum.models.infinity import Infinity, Resolution, TextFeatures
from modicum.models.next_scale import FullCache
from modicum.models.var import VAR, load_var

IMAGES: dict[str, Any] = {"labels": [0, 3, 4], "seed": [0, 1, 2]}


def fitted(method: CacheMethod, model: nn.Module, **context: Any) -> CachePolicy:
    anatomy: Any = SimpleNamespace(model=model)  # all that a cache method looks at
    return method.fit(anatomy, Context(torch.Generator().manual_seed(0), **context))


def methods(**shared: Any) -> list[EvictionMethod]:
    pairs = ((0, 3), (0, 4), (1, 4))
    return [
        Sliding(**shared),
        Streaming(**shared),
        SnapKV(window=4, **shared),
        PyramidKV(window=4, **shared),
        H2O(**shared),
        ScaleKV(window=4, drafters=pairs, **shared),
        ScaleKV(window=4, drafters=pairs, mode="paper", **shared),
    ]


def name_of(method: CacheMethod) -> str:
    return f"{method.name}-{getattr(method, 'mode', '')}"


@pytest.mark.parametrize("method", [Full(), *methods(budget="100%")], ids=name_of)
@pytest.mark.parametrize("cfg", [0.0, 1.5])
def test_a_budget_for_everything_draws_the_same_bits(method: CacheMethod, cfg: float, tiny_var: VAR) -> None:
    want = tiny_var.generate(**IMAGES, cfg=cfg)
    with fitted(method, tiny_var).attach(tiny_var) as model:
        assert torch.equal(model.generate(**IMAGES, cfg=cfg), want)


@pytest.mark.parametrize("method", methods(budget="12"), ids=name_of)
def test_a_small_budget_holds_in_a_generation(method: EvictionMethod, tiny_var: VAR) -> None:
    policy = fitted(method, tiny_var)
    cache = policy.make_cache()
    assert isinstance(cache, EvictingCache)
    small = tiny_var.generate(**IMAGES, cache=cache)
    assert not torch.equal(small, tiny_var.generate(**IMAGES))
    tokens = [cache.length(layer) for layer in range(3)]
    assert tokens == [row[-1] for row in policy.budget.tokens]
    assert sum(tokens) <= 3 * 12 < 3 * 30
    one = kv_nbytes(1, tiny_var.shape, 6, torch.float32, torch.float32) // 3
    assert cache.nbytes == sum(tokens) * one
    full = FullCache()
    tiny_var.generate(**IMAGES, cache=full)
    assert cache.nbytes < cache.peak_nbytes < full.peak_nbytes


@pytest.mark.parametrize("ratio", [1.0, 1.5, 0.333])
def test_images_from_text_in_any_shape(ratio: float, tiny_infinity: Infinity) -> None:
    """Fitted for squares; other shapes follow the same rule, and a later one knows nothing of an earlier one."""
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(length, 128, generator=generator) for length in (3, 5)]
    resolution = Resolution.of(ratio).prefix(5)
    asked: dict[str, Any] = {"resolution": resolution, "seed": [0, 1], "cfg": 2.0}
    prompts = TextFeatures.of(features)
    want = tiny_infinity.generate(prompts, **asked)
    for method in methods(budget="24"):
        policy = fitted(method, tiny_infinity)
        cache = policy.make_cache()
        assert isinstance(cache, EvictingCache)
        tiny_infinity.generate(prompts, **asked, cache=cache)
        table = policy.table(resolution.schedule)
        assert table.pruned
        assert [cache.length(layer) for layer in range(2)] == [row[-1] for row in table.tokens]
        whole = fitted(method.model_copy(update={"budget": "100%"}), tiny_infinity)
        with whole.attach(tiny_infinity):
            assert torch.equal(tiny_infinity.generate(prompts, **asked), want)


def test_attached_only_inside_the_context(tiny_var: VAR) -> None:
    before = tiny_var.make_cache
    policy = Sliding(budget="3").fit(Anatomy.of(tiny_var), Context(torch.Generator()))

    def fail_inside() -> None:
        with policy.attach(tiny_var) as model:
            assert model is tiny_var
            assert isinstance(model.make_cache(), EvictingCache)
            assert model.make_cache() is not model.make_cache()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_inside()
    assert tiny_var.make_cache == before


@pytest.mark.parametrize(
    "method", [Full(store_last=True), *methods(budget="12", key_dtype="computed")], ids=name_of
)
def test_saved_and_read_again(method: CacheMethod, tiny_var: VAR) -> None:
    policy = fitted(method, tiny_var)
    again = policy_from_json(json.loads(json.dumps(policy.to_json())))
    assert again == policy
    with policy.attach(tiny_var), torch.no_grad():
        want = tiny_var.generate(**IMAGES)
    with again.attach(tiny_var):
        assert torch.equal(tiny_var.generate(**IMAGES), want)


def test_the_savings_that_cost_nothing(tiny_var: VAR) -> None:
    model = VAR(tiny_var.config).eval()
    model.load_state_dict(tiny_var.state_dict())
    model.transformer.bfloat16()
    sizes = {}
    for store_last in (False, True):
        for key_dtype in ("attention", "computed"):
            cache = fitted(Full(store_last=store_last, key_dtype=key_dtype), model).make_cache()
            model.generate(**IMAGES, cache=cache)
            sizes[store_last, key_dtype] = cache.nbytes  # type: ignore[attr-defined]
    token = 6 * 24 * 3 * 2  # rows, channels, layers, bytes of bfloat16
    assert sizes[False, "attention"] == 30 * 2 * token
    assert sizes[True, "attention"] == 55 * 2 * token
    assert sizes[False, "computed"] == 30 * 3 * token
    assert sizes[True, "computed"] == 55 * 3 * token


def test_scalekv_measures_which_layers_need_history(tiny_var: VAR) -> None:
    policy = fitted(ScaleKV(budget="12", window=4, drafters=3), tiny_var, batches=[IMAGES])
    assert policy.selectivity is not None
    assert policy.method.drafters == policy.selectivity.drafters(3, scales=(3, 4))  # type: ignore[attr-defined]
    drafters = policy.method.drafters  # type: ignore[attr-defined]
    named = fitted(ScaleKV(budget="12", window=4, drafters=drafters), tiny_var)
    assert named.budget == policy.budget
    for layer, scale in drafters:
        assert policy.budget.carried(layer, scale) >= 12
    again = policy_from_json(json.loads(json.dumps(policy.to_json())))
    assert torch.equal(again.selectivity.asi, policy.selectivity.asi)  # type: ignore[union-attr]


def test_scalekv_measures_nothing_where_nothing_is_dropped(tiny_var: VAR) -> None:
    assert fitted(ScaleKV(budget="100%", window=4), tiny_var).selectivity is None
    with pytest.raises(UnusableData, match="no image to measure"):
        fitted(ScaleKV(budget="12", window=4), tiny_var)


def test_budgets_in_bytes_count_rows_and_key_dtype(tiny_var: VAR) -> None:
    token = kv_nbytes(1, tiny_var.shape, 6, torch.float32, torch.float32)
    assert fitted(Sliding(budget=f"{9 * token}B", rows=6), tiny_var).uniform == 9
    assert fitted(Sliding(budget=f"{9 * token}B", rows=3), tiny_var).uniform == 18


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"budget": "a lot"}, "not a cache budget"),
        ({"budget": "0"}, "not possible"),
        ({"window": 5}, "square number"),
        ({"window": 0}, "greater than or equal to 1"),
        ({"kernel": 4}, "must be odd"),
        ({"mode": "released?"}, "mode"),
        ({"rows": 0}, "rows"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidSetting, match=complaint):
        build("cache.scalekv", settings)


@pytest.mark.parametrize("method", [*methods(budget="1")[1:]], ids=name_of)
def test_a_budget_below_what_always_stays(method: EvictionMethod, tiny_var: VAR) -> None:
    with pytest.raises(InvalidSetting, match="below the window"):
        fitted(method, tiny_var)


def test_drafters_outside_the_model(tiny_var: VAR) -> None:
    with pytest.raises(InvalidSetting, match="no layer 7"):
        fitted(ScaleKV(budget="12", window=4, drafters=((7, 3),)), tiny_var)


def test_models_that_do_not_fit(tiny_var: VAR) -> None:
    policy = fitted(Sliding(budget="12"), tiny_var)
    with pytest.raises(UnsupportedModel, match="Linear does not draw"):
        fitted(Sliding(), nn.Linear(2, 2))
    with pytest.raises(UnsupportedModel, match="Linear does not draw"), policy.attach(nn.Linear(2, 2)):
        pass
    deeper = VAR(tiny_var.config.model_copy(update={"depth": 4}))
    with pytest.raises(InvalidSetting, match="3 layers, this one has 4"), policy.attach(deeper):
        pass


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": "something"}, "no cache policy"),
        ({"version": 2}, "version 2"),
        ({"method": "cache.scalkv"}, "no method named"),
        ({"method": "quantize.rtn", "settings": {}}, "no cache method"),
        ({"settings": {"window": "many"}}, "window"),
        ({"tokens": [[0, 1]]}, "does not fit"),
        ({"tokens": "none"}, "damaged"),
        ({"tokens": [[0, 1, 5, 3, 3]] * 3}, "would carry 3 tokens"),
        ({"schedule": [[1]]}, "damaged"),
        ({"uniform": None}, "damaged"),
        ({"selectivity": {"asi": "?"}}, "selectivity"),
        ({"settings": None}, "damaged"),
    ],
)
def test_damaged_files(change: dict[str, Any], complaint: str, tiny_var: VAR) -> None:
    good = fitted(ScaleKV(budget="12", window=4, drafters=()), tiny_var).to_json()
    with pytest.raises(CheckpointError, match=complaint):
        policy_from_json({**good, **change})
    for key in good:
        with pytest.raises(CheckpointError):
            policy_from_json({name: value for name, value in good.items() if name != key})
    with pytest.raises(CheckpointError, match="no cache policy"):
        policy_from_json([])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def distance() -> Callable[[CacheMethod], float]:
    """`distance(method)` is the mean squared error of nano-var's images to those of the full cache."""
    model = load_var(zoo.path("nano-var")).eval()
    images: dict[str, Any] = {"labels": [1, 7], "seed": [0, 1]}
    full = model.generate(**images)

    def measured(method: CacheMethod) -> float:
        with fitted(method, model, batches=[images]).attach(model):
            return (model.generate(**images) - full).square().mean().item()

    return measured


@pytest.mark.parametrize(
    "kind",
    [Sliding, Streaming, lambda **s: SnapKV(window=9, **s), H2O, lambda **s: ScaleKV(window=9, **s)],
    ids=["sliding", "streaming", "snapkv", "h2o", "scalekv"],
)
def test_more_budget_is_nearer_to_the_full_cache(
    kind: Callable[..., CacheMethod], distance: Callable[[CacheMethod], float]
) -> None:
    large, middle, small = (distance(kind(budget=budget)) for budget in ("80%", "40%", "10%"))
    assert large < middle < small


def test_what_queries_attend_to_is_worth_more_than_anything(
    distance: Callable[[CacheMethod], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = distance(H2O(budget="30%"))
    generator = torch.Generator().manual_seed(0)

    def at_random(self: H2O, policy: CachePolicy) -> EvictingCache:
        def choose(view: Any) -> Tensor:
            order = torch.rand(view.keys.shape[:3], generator=generator).argsort(-1)
            return order[..., : view.capacity].sort(-1).values

        return EvictingCache(policy.table, choose)

    monkeypatch.setattr(H2O, "cache", at_random)
    assert kept < distance(H2O(budget="30%"))
