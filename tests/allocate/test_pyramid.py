from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modicum.allocate.cache_tokens import CacheBudget
from modicum.allocate.pyramid import pyramid
from modicum.errors import InvalidSetting
from modicum.models.next_scale import Schedule

INFINITY = Schedule.square((1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64))
SIZES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=6)


@settings(max_examples=100, deadline=None)
@given(SIZES, st.integers(1, 40), st.integers(1, 200), st.integers(1, 30), st.integers(1, 40))
def test_a_pyramid_never_holds_more_than_the_uniform_budget(
    sizes: list[tuple[int, int]], layers: int, uniform: int, beta: int, window: int
) -> None:
    schedule, uniform = Schedule(tuple(sizes)), max(uniform, window)
    budget = pyramid(schedule, layers, uniform, beta=beta, window=window)
    for k, prefix in enumerate(schedule.offsets[:-1]):
        column = [row[k] for row in budget.tokens]
        assert budget.total(k) <= layers * min(uniform, prefix)
        assert max(column) <= prefix
        assert min(column) >= min(window, prefix)
        if prefix <= uniform:
            assert set(column) == {prefix}


@pytest.mark.parametrize("layers", [1, 2, 5, 32, 40, 64, 128])
@pytest.mark.parametrize("uniform", [265, 650, 1300])
def test_it_falls_in_equal_steps_to_one_in_beta(layers: int, uniform: int) -> None:
    budget, last = pyramid(INFINITY, layers, uniform, window=64), len(INFINITY) - 1
    column = [row[last] for row in budget.tokens]
    assert sum(column) == layers * uniform
    assert column == sorted(column, reverse=True)
    if layers > 1:
        assert column[-1] == 64 + (uniform - 64) // 20
        steps = [above - below for above, below in pairwise(column)]
        assert max(steps) - min(steps) <= 2  # rounding


def test_the_first_layer_gets_at_most_what_there_is() -> None:
    schedule = Schedule.square((3, 4, 5))  # 9 tokens before map 1, 25 before map 2
    budget = pyramid(schedule, 3, 15, window=1)
    assert [row[2] for row in budget.tokens] == [25, 15, 5]
    assert [row[1] for row in budget.tokens] == [9, 9, 9]


def test_flat_and_refused() -> None:
    assert pyramid(INFINITY, 7, 650, beta=1) == CacheBudget.uniform(INFINITY, 7, 650)
    with pytest.raises(InvalidSetting, match="below the window of 64"):
        pyramid(INFINITY, 7, 63, window=64)
