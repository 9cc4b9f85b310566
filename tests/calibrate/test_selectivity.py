"""The Attention Selectivity Index: against plain attention, in its limits, and on nano-var."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from modicum import zoo
from modicum.calibrate import selectivity
from modicum.calibrate.selectivity import Selectivity, attention_parts, measure_selectivity
from modicum.errors import CheckpointError, InvalidSetting, UnusableData
from modicum.models.next_scale import AttentionShape, FullCache, NextScaleModel, Queries, Schedule
from modicum.models.var import load_var


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Attention(NextScaleModel):
    """Nothing but attention over random queries and keys, in two layers of three heads.

    `sharp` multiplies the queries; `alike` gives both layers the same tensors.
    """

    def __init__(self, schedule: Schedule, sharp: float = 1.0, *, alike: bool = False) -> None:
        super().__init__(schedule, AttentionShape(2, 3, 8))
        self.place = torch.nn.Parameter(torch.zeros(1))
        self.sharp, self.alike = sharp, alike
        self.seen: list[tuple[int, int, Tensor, Tensor]] = []  # layer, map, queries, all keys

    def generate(self, rows: int = 2, seed: int = 0) -> Tensor:
        cache = self.make_cache()
        cache.begin(self.schedule)
        for scale, tokens in enumerate(self.schedule.tokens):
            for layer in range(2):
                source = seeded(100 * seed + 10 * scale + layer * (not self.alike))
                q, k, v = torch.randn(3, rows, 3, tokens, 8, generator=source)
                keys, _ = cache.extend(layer, k, v)
                cache.settle(
                    layer, scale, Queries(q.transpose(1, 2).flatten(2), lambda x: x, q * self.sharp, 0.5)
                )
                self.seen.append((layer, scale, q * self.sharp, keys.clone()))
        return torch.zeros(rows, 1, 1, 1)


def asi(model: NextScaleModel, *batches: dict[str, Any], seed: int = 0, **settings: Any) -> Tensor:
    return measure_selectivity(model, batches or [{}], generator=seeded(seed), **settings).asi


def plain_index(queries: Tensor, keys: Tensor, new: int, top: int) -> Tensor:
    """The formula with the whole attention matrix, `[rows, heads]`."""
    attention = (queries @ keys.transpose(-1, -2) * 0.5).softmax(-1)
    current = attention[..., -new:].sum(-1).mean(-1)
    history = attention[..., :-new].sort(dim=-1, descending=True).values[..., :top].sum(-1).mean(-1)
    return current * history


@pytest.mark.parametrize("logit_bytes", [1, 64 << 20])
@pytest.mark.parametrize("top", [1, 3, None, 1000])
def test_the_index_is_what_plain_attention_gives(
    top: int | None, logit_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selectivity, "LOGIT_BYTES", logit_bytes)  # one query at a time, or all
    model = Attention(Schedule.of([(1, 2), (2, 3), (4, 3)]))
    found = asi(model, {"seed": 1}, {"seed": 2, "rows": 3}, top=top)
    wanted = torch.zeros(2, 3, dtype=torch.float64)
    for layer, scale, queries, keys in model.seen:
        if scale:
            new, history = model.schedule.tokens[scale], model.schedule.offsets[scale]
            index = plain_index(queries, keys, new, min(history, top or 1))
            wanted[layer, scale] += index.mean(1).sum() / 5  # five rows in both batches together
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_parts_are_shares_and_grow_with_top(queries: int, history: int, new: int, seed: int) -> None:
    query = torch.randn(2, queries, 4, generator=seeded(seed)).double()  # one more key may get less than 1e-7
    keys = torch.randn(2, history + new, 4, generator=seeded(seed + 1)).double()
    shares = [attention_parts(query, keys, new, top)[1] for top in range(1, history + 1)]
    current = attention_parts(query, keys, new, 1)[0]
    torch.testing.assert_close(current + shares[-1], torch.ones(2, queries, dtype=torch.float64))
    for top, (fewer, more) in enumerate(pairwise(shares), start=1):
        assert (more > fewer).all()
        assert (more <= fewer * (top + 1) / top + 1e-6).all()  # each further one gets at most as much


def test_even_attention_is_counting() -> None:
    found = asi(Attention(Schedule.of([(1, 2), (2, 3), (4, 3)]), sharp=0.0), top=2)
    counted = torch.tensor([[0, 6 / 8 * 2 / 8, 12 / 20 * 2 / 20]] * 2, dtype=torch.float64)
    torch.testing.assert_close(found, counted)


def test_the_default_top_is_a_tenth_of_the_history_up_to_64() -> None:
    schedule = Schedule.of([(1, 1), (9, 10), (30, 30), (1, 1)])  # histories 1, 91, 991
    model = Attention(schedule, sharp=0.0)
    torch.testing.assert_close(
        asi(model, queries=2)[0],
        torch.tensor([0, 90 / 91 / 91, 900 / 991 * 9 / 991, 1 / 992 * 64 / 992], dtype=torch.float64),
    )


def test_attention_in_one_place_has_a_higher_index_than_spread_attention() -> None:
    schedule = Schedule.square((6, 4))
    assert (asi(Attention(schedule, 0.1), top=3) <= asi(Attention(schedule, 3.0), top=3)).all()


def test_the_sample_of_queries_is_seeded_and_shared_by_the_layers() -> None:
    model = Attention(Schedule.square((3, 6)))
    assert torch.equal(asi(model, queries=5), asi(model, queries=5))
    assert not torch.equal(asi(model, queries=5), asi(model, queries=5, seed=1))
    torch.testing.assert_close(asi(model, queries=36), asi(model, queries=1000, seed=1))
    alike = asi(Attention(Schedule.square((3, 6)), alike=True), queries=5)
    assert torch.equal(alike[0], alike[1])


def test_z_has_mean_0_and_deviation_1_at_every_map() -> None:
    index = torch.rand(7, 4, dtype=torch.float64, generator=seeded())
    index[:, 0] = 0
    z = Selectivity(index).z
    torch.testing.assert_close(z.mean(0), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(z[:, 1:].std(0, correction=0), torch.ones(3).double(), atol=1e-4, rtol=0)
    assert (z[:, 0] == 0).all()
    assert Selectivity(torch.rand(1, 3)).z.tolist() == [[0, 0, 0]]


def test_drafters_are_the_lowest_and_ties_go_to_the_lower_layer() -> None:
    table = Selectivity(torch.tensor([[0, 3, 1], [0, 1, 2], [0, 1, 3], [0, 3, 2.0]]).double())
    assert table.drafters(1) == ((0, 2),)
    assert table.drafters(2) == ((0, 2), (1, 1))
    assert table.drafters(3) == ((0, 2), (1, 1), (2, 1))
    assert table.drafters(2, scales=[2]) == ((0, 2), (1, 2))
    assert table.drafters(0) == ()
    assert len(table.drafters(8)) == 8


@pytest.mark.parametrize(
    ("layers", "scales", "count"),
    [(32, range(8, 13), 10), (40, range(8, 13), 15), (16, [5, 6, 7], 3), (6, [5, 6, 7], 0)],
)
def test_default_number_of_drafters(layers: int, scales: list[int], count: int) -> None:
    table = Selectivity(torch.rand(layers, 13, generator=seeded()).double())
    drafters = table.drafters(scales=scales)
    assert len(drafters) == count
    assert {scale for _, scale in drafters} <= set(scales)


@pytest.mark.parametrize(
    ("count", "scales", "message"),
    [
        (13, None, "13 drafters of 12"),
        (-1, None, "-1 drafters"),
        (1, [0, 1], "0, 1"),
        (1, [4], "maps with a history"),
    ],
)
def test_refused_drafters(count: int, scales: list[int] | None, message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        Selectivity(torch.rand(4, 4).double()).drafters(count, scales)


def test_json_round_trip_is_exact() -> None:
    table = Selectivity(torch.rand(5, 4, dtype=torch.float64, generator=seeded()))
    again = Selectivity.from_json(json.loads(json.dumps(table.to_json())))
    assert torch.equal(again.asi, table.asi)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"format": 1, "asi": "many"},
        {"format": 1, "asi": [[0, 1], [0]]},
        {"format": 1, "asi": [0, 1]},
        {"format": 1, "asi": [[0, float("nan")]]},
        {"format": 2, "asi": [[0, 1]]},
    ],
)
def test_damaged_json(data: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError):
        Selectivity.from_json(data)


def test_refused_measurements() -> None:
    model = Attention(Schedule.square((1, 2)))
    with pytest.raises(UnusableData, match="no prompt"):
        measure_selectivity(model, [], generator=seeded())
    with pytest.raises(InvalidSetting, match="queries is 0"):
        asi(model, queries=0)
    with pytest.raises(InvalidSetting, match="top is 0"):
        asi(model, top=0)
    with pytest.raises(InvalidSetting, match="its own cache"):
        asi(model, {"cache": FullCache()})


def test_batches_of_different_schedules_are_refused() -> None:
    model = Attention(Schedule.square((1, 2)))
    model.generate = lambda sides: Attention.generate(_with(model, sides))  # type: ignore[assignment, misc]
    with pytest.raises(InvalidSetting, match="different shapes"):
        asi(model, {"sides": (1, 2)}, {"sides": (1, 3)})


def _with(model: Attention, sides: tuple[int, ...]) -> Attention:
    model.schedule = Schedule.square(sides)
    return model


def test_nano_var_gives_the_same_table_for_one_prompt_and_for_ten() -> None:
    """The card's check: the order of the layers belongs to the model, not to the prompt."""
    model = load_var(zoo.path("nano-var"))
    before = model.make_cache
    sampling: dict[str, Any] = {"cfg": 1.5, "top_k": 0, "top_p": 0.95}
    ten = measure_selectivity(model, [{"labels": list(range(10)), "seed": 0, **sampling}], generator=seeded())
    one = measure_selectivity(model, [{"labels": 3, "seed": 1, **sampling}], generator=seeded(1))
    assert model.make_cache is before
    pruned = one.z[:, 1:].flatten(), ten.z[:, 1:].flatten()
    assert torch.corrcoef(torch.stack(pruned))[0, 1] > 0.9
    first, second = (set(table.drafters(6, scales=(5, 6, 7))) for table in (one, ten))
    assert len(first & second) >= 4
