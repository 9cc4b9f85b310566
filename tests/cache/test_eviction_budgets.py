"""What every policy owes a generation, whatever it keeps: its budget, exact copies, order, a fresh start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from modicum.cache.eviction import EvictionMethod, View
from modicum.cache.h2o import H2O
from modicum.cache.pyramidkv import PyramidKV
from modicum.cache.scalekv import ScaleKV
from modicum.cache.sliding import Sliding
from modicum.cache.snapkv import SnapKV
from modicum.cache.streaming import Streaming
from modicum.method import registry
from modicum.models.next_scale import Queries, Schedule

SIZES = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=2, max_size=5)
SOME = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))


def methods(window: int = 4, **shared: Any) -> list[EvictionMethod]:
    """One of each kind; drafters where the method has some."""
    drafters = ((0, 1), (0, 2), (1, 3))
    return [
        Sliding(**shared),
        Streaming(sinks=3, **shared),
        SnapKV(window=window, kernel=3, **shared),
        PyramidKV(window=window, beta=3, **shared),
        H2O(**shared),
        ScaleKV(window=window, drafters=drafters, **shared),
        ScaleKV(window=window, drafters=drafters, mode="paper", kernel=3, **shared),
    ]


EACH = pytest.mark.parametrize("method", methods(), ids=lambda m: f"{m.name}-{getattr(m, 'mode', '')}")


def test_each_registered_policy_is_tested_here() -> None:
    found = {name for name, kind in registry().items() if issubclass(kind, EvictionMethod)}
    assert found == {method.name for method in methods()}


@EACH
@SOME
@given(
    sizes=SIZES, layers=st.integers(2, 4), spare=st.integers(0, 40), rows=st.integers(1, 2), data=st.data()
)
def test_a_layer_carries_its_budget_as_exact_copies_in_order(
    lab: Any,
    method: EvictionMethod,
    sizes: list[tuple[int, int]],
    layers: int,
    spare: int,
    rows: int,
    data: st.DataObject,
) -> None:
    stack = lab.Layers(Schedule(tuple(sizes)), layers, rows, data.draw(st.integers(1, 3)))
    uniform = method.least + spare
    policy = lab.policy_of(method, stack.schedule, layers, uniform)
    cache, last = policy.make_cache(), len(sizes) - 1
    for scale, layer in stack.run(cache):
        carried = cache.length(layer)
        assert carried == policy.budget.carried(layer, min(scale + 1, last))
        if layer == layers - 1:
            total = sum(cache.length(each) for each in range(layers))
            assert total <= layers * min(uniform, stack.schedule.offsets[min(scale + 1, last)])
        if not carried:
            continue
        places = lab.places(cache, layer)
        assert (places.diff(dim=-1) > 0).all()
        for held, whole in zip(cache.held(layer), stack.everything(layer), strict=True):
            assert torch.equal(held, whole.gather(2, places[..., None].expand_as(held)))


@EACH
def test_a_budget_for_everything_drops_nothing(lab: Any, method: EvictionMethod) -> None:
    stack = lab.Layers(Schedule.of([(1, 1), (2, 3), (4, 2), (3, 5)]))
    policy = lab.policy_of(method, stack.schedule, 2, stack.schedule.offsets[-2])
    cache = policy.make_cache()
    for scale, layer in stack.run(cache):
        want = torch.arange(stack.schedule.offsets[min(scale + 1, 3)])
        assert torch.equal(lab.places(cache, layer), want.expand(2, 3, -1))


@EACH
def test_a_generation_knows_nothing_of_the_one_before(lab: Any, method: EvictionMethod) -> None:
    wide, short = Schedule.of([(1, 1), (2, 4), (3, 6), (4, 8)]), Schedule.square((1, 2, 3))
    policy = lab.policy_of(method, wide, 2, 9)
    used = policy.make_cache()
    for schedule in (wide, short, wide):
        stack, fresh = lab.Layers(schedule), policy.make_cache()
        for (_, layer), _ in zip(stack.run(used), stack.run(fresh), strict=True):
            assert torch.equal(used.held(layer)[0], fresh.held(layer)[0])


@EACH
def test_another_image_shape_gets_a_table_of_its_own(lab: Any, method: EvictionMethod) -> None:
    policy = lab.policy_of(method, Schedule.square((1, 2, 3, 4, 5)), 2, 10)
    tall = Schedule.of([(1, 1), (4, 2), (6, 2), (7, 3), (8, 4)])
    stack, cache = lab.Layers(tall), policy.make_cache()
    for scale, layer in stack.run(cache):
        assert cache.length(layer) == method.table(tall, 2, 10).carried(layer, min(scale + 1, 4))


@EACH
def test_rows_and_heads_choose_for_themselves(lab: Any, method: EvictionMethod) -> None:
    """A permutation before the choice is a permutation of the choice."""
    stack = lab.Layers(Schedule.square((2, 4, 5)), rows=3, heads=4)
    keys = torch.cat([stack.tensors(0, scale)[0] for scale in range(3)], 2)
    queries, size = stack.tensors(0, 2)[2], (5, 5)
    rows, heads = torch.tensor([2, 0, 1]), torch.tensor([3, 1, 0, 2])

    def permuted(x: Tensor) -> Tensor:
        return x[rows][:, heads]

    inputs = queries.inputs.unflatten(-1, (4, -1))[rows][:, :, heads].flatten(2)
    other = Queries(inputs, queries.project, permuted(queries.final), queries.scale)
    want = permuted(method.choose(View(keys, queries, size, 12)))
    assert torch.equal(method.choose(View(permuted(keys), other, size, 12)), want)
    assert want.shape == (3, 4, 12)


@EACH
def test_the_last_map_is_not_stored_unless_asked_for(lab: Any, method: EvictionMethod) -> None:
    stack = lab.Layers(Schedule.square((2, 3, 4)))
    for store_last in (False, True):
        chosen = method.model_copy(update={"store_last": store_last})
        policy = lab.policy_of(chosen, stack.schedule, 2, 10)
        cache = policy.make_cache()
        list(stack.run(cache))
        newest = max(lab.places(cache, layer).max() for layer in range(2))
        assert (newest >= stack.schedule.offsets[-2]) == store_last
        assert [cache.length(layer) for layer in range(2)] == [row[-1] for row in policy.budget.tokens]


@EACH
def test_bytes_between_maps(lab: Any, method: EvictionMethod) -> None:
    stack = lab.Layers(Schedule.square((1, 2, 3, 4)))
    policy = lab.policy_of(method, stack.schedule, 2, 8)
    cache = policy.make_cache()
    for scale, layer in stack.run(cache):
        if layer == 1:
            tokens = policy.budget.total(min(scale + 1, 3))
            assert cache.nbytes == cache.allocated_nbytes == tokens * 2 * 3 * 4 * (4 + 4)
