"""Which tokens each policy keeps, against the rule written out for one row and head at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from modicum.cache.eviction import EvictionMethod, View
from modicum.cache.h2o import H2O
from modicum.cache.pyramidkv import PyramidKV
from modicum.cache.scalekv import ScaleKV, probe_grid
from modicum.cache.sliding import Sliding
from modicum.cache.snapkv import SnapKV
from modicum.cache.streaming import Streaming
from modicum.models.next_scale import Schedule

SCHEDULE = Schedule.of([(2, 2), (3, 4), (5, 6)])


@pytest.fixture
def view(lab: Any) -> View:
    stack = lab.Layers(SCHEDULE)
    keys, _ = stack.everything(0)
    return View(keys, stack.tensors(0, 2)[2], (5, 6), 20)


def each(view: View) -> Iterator[tuple[int, int]]:
    return ((row, head) for row in range(view.keys.shape[0]) for head in range(view.keys.shape[1]))


def best(scores: list[float], count: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda j: (-scores[j], j))[:count])


def near(values: list[float], j: int, kernel: int) -> list[float]:
    reach = kernel // 2
    return values[max(0, j - reach) : j + reach + 1]


def attention(view: View, row: int, head: int) -> Tensor:
    """Probabilities of all queries of the map over all cached tokens, `[tokens, held]`."""
    return (view.queries.final[row, head] @ view.keys[row, head].T * view.queries.scale).softmax(-1)


def test_sliding_keeps_the_last(view: View) -> None:
    got = Sliding().choose(view)
    assert torch.equal(got, torch.arange(26, 46).expand(2, 3, 20))


def test_streaming_keeps_both_ends(view: View) -> None:
    got = Streaming().choose(view)
    assert torch.equal(got, torch.tensor([0, 1, 2, 3, *range(30, 46)]).expand(2, 3, 20))
    assert torch.equal(Streaming(sinks=0).choose(view), Sliding().choose(view))


@pytest.mark.parametrize("kind", [SnapKV, PyramidKV])
@pytest.mark.parametrize("kernel", [1, 5])
def test_snapkv_keeps_what_the_last_queries_attend_to(kind: type[SnapKV], kernel: int, view: View) -> None:
    got = kind(window=7, kernel=kernel).choose(view)
    for row, head in each(view):
        seen = attention(view, row, head)[-7:, :-7].mean(0).tolist()
        pooled = [sum(near(seen, j, kernel)) / kernel for j in range(len(seen))]
        assert got[row, head].tolist() == best(pooled, 13) + list(range(39, 46))


def test_in_a_small_map_all_tokens_observe(lab: Any) -> None:
    stack = lab.Layers(Schedule.square((4, 2)))
    keys, _ = stack.everything(0)
    view = View(keys, stack.tensors(0, 1)[2], (2, 2), 10)
    got = SnapKV(window=8).choose(view)
    assert torch.equal(got, SnapKV(window=4).choose(view))
    assert torch.equal(got[..., -4:], torch.arange(16, 20).expand(2, 3, 4))


def test_h2o_adds_up_the_attention_of_all_maps(lab: Any) -> None:
    stack = lab.Layers(SCHEDULE, layers=1)
    cache = lab.policy_of(H2O(store_last=True), SCHEDULE, 1, 9).make_cache()
    mass = {(row, head): {} for row in range(2) for head in range(3)}
    for scale, _ in stack.run(cache):
        keys, queries = stack.everything(0)[0], stack.tensors(0, scale)[2]
        first, end = SCHEDULE.offsets[scale], SCHEDULE.offsets[scale + 1]
        for (row, head), sums in mass.items():
            tokens = [*sums, *range(first, end)]
            logits = queries.final[row, head] @ keys[row, head, tokens].T * queries.scale
            for token, added in zip(tokens, logits.softmax(-1).sum(0).tolist(), strict=True):
                sums[token] = sums.get(token, 0.0) + added
            if len(tokens) > 9:
                older = tokens[:-4]
                heavy = [older[j] for j in best([sums[token] for token in older], 5)]
                mass[row, head] = {token: sums[token] for token in [*heavy, *tokens[-4:]]}
            assert lab.places(cache, 0)[row, head].tolist() == list(mass[row, head])


def test_h2o_alone_looks_at_this_map(view: View) -> None:
    got = H2O().choose(view)
    for row, head in each(view):
        seen = attention(view, row, head).sum(0).tolist()
        assert got[row, head].tolist() == best(seen[:-10], 10) + list(range(36, 46))


def probes_of(view: View) -> list[int]:
    """Two by two probes in a map of 5 x 6: patches of 2 x 3, their middles rounded down."""
    return [view.start + 6 * row + column for row in (0, 2) for column in (1, 4)]


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_scalekv_as_released(kernel: int, view: View) -> None:
    got = ScaleKV(window=4, kernel=kernel).choose(view)
    probes = probes_of(view)
    for row, head in each(view):
        raw = view.queries.raw()[row, head, [probe - view.start for probe in probes]]
        summed = (raw @ view.keys[row, head].T / 2).sum(0).tolist()
        masked = [-torch.inf if j in probes else score for j, score in enumerate(summed)]
        pooled = [torch.inf if j in probes else max(near(masked, j, kernel)) for j in range(len(masked))]
        assert got[row, head].tolist() == best(pooled, 20)
        assert set(probes) <= set(got[row, head].tolist())


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_scalekv_of_the_paper(kernel: int, view: View) -> None:
    got = ScaleKV(window=4, kernel=kernel, mode="paper").choose(view)
    probes = probes_of(view)
    for row, head in each(view):
        seen = attention(view, row, head)[[probe - view.start for probe in probes]].sum(0).tolist()
        masked = [0.0 if j in probes else score for j, score in enumerate(seen)]
        pooled = [
            torch.inf if j in probes else sum(near(masked, j, kernel)) / kernel for j in range(len(masked))
        ]
        assert got[row, head].tolist() == best(pooled, 20)


def test_equal_scores_go_to_the_lower_position(view: View) -> None:
    """With equal keys everything ties; what stays beside the protected tokens is the oldest."""
    flat = View(torch.ones_like(view.keys), view.queries, view.size, 10)
    probes = probes_of(view)
    for mode in ("released", "paper"):
        got = ScaleKV(window=4, kernel=1, mode=mode).choose(flat)
        oldest = [j for j in range(46) if j not in probes][:6]
        assert torch.equal(got, torch.tensor(sorted([*oldest, *probes])).expand(2, 3, 10))
    assert torch.equal(
        SnapKV(window=4, kernel=1).choose(flat)[0, 0], torch.tensor([*range(6), *range(42, 46)])
    )


def test_a_bfloat16_cache_is_scored_in_float32(lab: Any) -> None:
    """Scores are not rounded to bfloat16: nothing ties that does not tie in the stored numbers."""
    stack = lab.Layers(Schedule.square((8, 16)), rows=1, heads=2, head_dim=32)
    keys = stack.everything(0)[0].bfloat16()
    for method in (ScaleKV(), ScaleKV(mode="paper"), SnapKV(), H2O()):
        low = method.choose(View(keys, stack.tensors(0, 1)[2], (16, 16), 100))
        assert torch.equal(low, method.choose(View(keys.float(), stack.tensors(0, 1)[2], (16, 16), 100)))


@pytest.mark.parametrize(
    ("size", "side", "rows", "columns"),
    [
        ((20, 20), 4, [2, 7, 12, 17], [2, 7, 12, 17]),
        ((8, 4), 4, [0, 2, 4, 6], [0, 1, 2, 3]),
        ((27, 18), 4, [2, 8, 14, 20], [1, 5, 9, 13]),
        ((3, 2), 4, [0, 1, 2], [0, 1]),
        ((1, 1), 4, [0], [0]),
        ((9, 9), 1, [4], [4]),
    ],
)
def test_probes(size: tuple[int, int], side: int, rows: list[int], columns: list[int]) -> None:
    got = probe_grid(size, side, torch.device("cpu"))
    assert got.tolist() == [size[1] * row + column for row in rows for column in columns]


def test_a_choice_reads_nothing_back_from_the_device(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("waits for the device")

    for name in ("item", "tolist", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    choices: list[Callable[[View], Tensor]] = [
        method.choose
        for method in (Sliding(), Streaming(), SnapKV(window=4), H2O(), ScaleKV(), ScaleKV(mode="paper"))
    ]
    for choose in choices:
        assert choose(view).shape == (2, 3, 20)


def test_the_rules_are_pure(view: View) -> None:
    methods: list[EvictionMethod] = [SnapKV(window=4), H2O(), ScaleKV(), ScaleKV(mode="paper")]
    before = view.keys.clone(), view.queries.final.clone(), view.queries.inputs.clone()
    for method in methods:
        assert torch.equal(method.choose(view), method.choose(view))
    for old, new in zip(before, (view.keys, view.queries.final, view.queries.inputs), strict=True):
        assert torch.equal(old, new)
