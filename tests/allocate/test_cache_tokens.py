"""Budgets over layers and maps: the published tables, and what must hold for any model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modicum.allocate import CacheBudget, pruned_scales, read_budget, scale_aware, write_budget
from modicum.errors import InvalidSetting
from modicum.models.next_scale import Schedule

MEGAPIXEL = Schedule.square((1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64))
LATE = range(8, 13)  # maps 9 to 13 of the published tables
DRAFTERS_8B = {(layer, k) for layer in (0, 1, 2) for k in LATE}
DRAFTERS_2B = {(layer, k) for layer in (0, 23) for k in LATE} - {(23, 12)}


@st.composite
def splits(draw: st.DrawFn) -> tuple[Schedule, int, int, set[tuple[int, int]], int]:
    """A schedule, layers, a uniform budget, drafters and a window at most that large."""
    sides = st.tuples(st.integers(1, 9), st.integers(1, 9))
    schedule = Schedule.of(draw(st.lists(sides, min_size=1, max_size=9)))
    layers = draw(st.integers(1, 12))
    pairs = [(layer, k) for layer in range(layers) for k in range(len(schedule))]
    drafters = draw(st.sets(st.sampled_from(pairs)))
    window = draw(st.integers(1, 20))
    return schedule, layers, draw(st.integers(window, schedule.total + window)), drafters, window


@pytest.mark.parametrize(
    ("layers", "drafters", "published"),
    [
        (40, DRAFTERS_8B, [(909, 629), (1464, 584), (2463, 503), (4054, 374), (6200, 200)]),
        (32, DRAFTERS_2B, [(920, 632), (1490, 594), (2510, 526), (4100, 420), (6385, 465)]),
    ],
    ids=["8B", "2B"],
)
def test_published_tables(
    layers: int, drafters: set[tuple[int, int]], published: list[tuple[int, int]]
) -> None:
    budget = scale_aware(MEGAPIXEL, layers, 650, drafters)
    assert [(budget.carried(0, k), budget.carried(5, k)) for k in LATE] == published
    assert all(budget.carried(layer, k) == MEGAPIXEL.offsets[k] for layer in range(layers) for k in range(8))
    assert [budget.total(k) for k in LATE] == [650 * layers] * 5
    assert budget.pruned == tuple(LATE) == tuple(pruned_scales(MEGAPIXEL, 650))


@given(splits())
def test_never_above_the_total_nor_above_what_is_held(
    split: tuple[Schedule, int, int, set[tuple[int, int]], int],
) -> None:
    schedule, layers, uniform, drafters, window = split
    budget = scale_aware(schedule, layers, uniform, drafters, window=window)
    for k in range(len(schedule)):
        assert budget.total(k) <= uniform * layers
        for layer, row in enumerate(budget.tokens):
            held = row[k - 1] + schedule.tokens[k - 1] if k else 0
            assert row[k] <= held
            assert row[k] >= min(held, window)
            assert k in pruned_scales(schedule, uniform) or row[k] == schedule.offsets[k]
            if (layer, k) not in drafters:
                assert row[k] <= uniform


@given(splits(), st.data())
def test_largest_drafter_budget_that_divides(
    split: tuple[Schedule, int, int, set[tuple[int, int]], int], data: st.DataObject
) -> None:
    """The closed form against a search over all budgets, for drafters that stay the same at every map."""
    schedule, layers, uniform, _, window = split
    count = data.draw(st.integers(0, layers))
    floor = data.draw(st.integers(window, uniform))
    drafters = {(layer, k) for layer in range(count) for k in range(len(schedule))}
    budget = scale_aware(schedule, layers, uniform, drafters, window=window, floor=floor)
    for k in pruned_scales(schedule, uniform):
        total, refiners = uniform * layers, layers - count
        if not 0 < count < layers:
            assert {row[k] for row in budget.tokens} == {uniform}
            continue
        limit = budget.carried(0, k - 1) + schedule.tokens[k - 1]
        best = max(
            b
            for b in range(limit + 1)
            if (total - count * b) % refiners == 0 and (total - count * b) // refiners >= floor
        )
        assert budget.carried(0, k) == best
        refined = (total - count * best) // refiners
        assert budget.carried(layers - 1, k) == min(
            refined, budget.carried(layers - 1, k - 1) + schedule.tokens[k - 1]
        )


@given(split=splits())
@settings(max_examples=50)
def test_budget_files_hold_whatever_the_rule_makes(
    split: tuple[Schedule, int, int, set[tuple[int, int]], int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    schedule, layers, uniform, drafters, window = split
    budget = scale_aware(schedule, layers, uniform, drafters, window=window)
    file = tmp_path_factory.getbasetemp() / "round-trip.json"
    write_budget(file, drafters, budget)
    found, again = read_budget(file, schedule, layers)
    assert again == budget
    assert found == {(layer, k) for layer, k in drafters if k in budget.pruned}


def test_drafters_gain_what_refiners_give() -> None:
    budget = scale_aware(MEGAPIXEL, 32, 650, DRAFTERS_2B)
    for k in LATE:
        assert budget.carried(5, k) < 650 < budget.carried(0, k)
    assert scale_aware(MEGAPIXEL, 32, 650, set()) == CacheBudget.uniform(MEGAPIXEL, 32, 650)


@pytest.mark.parametrize(("uniform", "least"), [(650, 200), (1300, 400), (265, 81), (40, 16)])
def test_default_floor_scales_with_the_budget(uniform: int, least: int) -> None:
    many = {(layer, k) for layer in range(20) for k in range(13)}  # drafters enough to push refiners down
    lowest = scale_aware(MEGAPIXEL, 40, uniform, many).carried(39, 12)
    assert least <= lowest < least + 20
    assert lowest == scale_aware(MEGAPIXEL, 40, uniform, many, floor=least).carried(39, 12)


def test_a_layer_that_changes_sides_carries_what_it_holds() -> None:
    schedule = Schedule.square((2, 4, 4, 4))
    budget = scale_aware(schedule, 2, 10, {(0, 2), (1, 3)}, window=4, floor=4)
    assert budget.tokens[1][2] == 4
    assert budget.tokens[1][3] == min(16, 4 + 16)
    assert budget.total(3) <= 20
    late = scale_aware(Schedule.square((1, 4, 1, 1)), 2, 9, {(0, 2), (1, 3)}, window=1, floor=1)
    assert late.tokens[1] == (0, 1, 1, 2)  # held 1, and one new token


def test_a_whole_prefix_is_kept_by_any_budget_that_covers_it() -> None:
    budget = scale_aware(MEGAPIXEL, 3, 6425, {(0, 12)})
    assert budget.tokens == (MEGAPIXEL.offsets[:-1],) * 3
    assert budget.pruned == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uniform": 15}, "below the window of 16"),
        ({"floor": 15}, "cannot keep 15"),
        ({"floor": 651}, "cannot keep 651"),
        ({"drafters": {(4, 8)}}, "no layer 4 at map 8"),
        ({"drafters": {(0, 13)}}, "no layer 0 at map 13"),
        ({"drafters": {(-1, 8)}}, "no layer -1 at map 8"),
    ],
)
def test_refused_splits(options: dict[str, object], message: str) -> None:
    given_settings: dict[str, object] = {"uniform": 650, "drafters": set(), **options}
    uniform, drafters = given_settings.pop("uniform"), given_settings.pop("drafters")
    with pytest.raises(InvalidSetting, match=message):
        scale_aware(MEGAPIXEL, 4, uniform, drafters, **given_settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ((), "rows of"),
        (((0, 1, 5), (0, 1)), "rows of"),
        (((0, 2, 5),), "layer 0 carries"),
        (((1, 1, 5),), "layer 0 carries"),
        (((0, 1, 5), (0, 1, -1)), "layer 1 carries"),
        (((0, 0, 5),), "layer 0 carries"),
    ],
)
def test_refused_tables(tokens: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        CacheBudget(Schedule.square((1, 2, 3)), tokens)


def test_uniform_keeps_short_prefixes_whole() -> None:
    budget = CacheBudget.uniform(MEGAPIXEL, 2, 650)
    assert budget.tokens[0] == (0, 1, 5, 21, 57, 121, 265, 521, 650, 650, 650, 650, 650)
    assert budget.layers == 2
    assert budget.total(12) == 1300
