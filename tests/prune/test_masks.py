"""Pruning methods: exact counts, limiting cases, and who makes the smallest error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modicum.calibrate.statistics import Statistics
from modicum.errors import InvalidSetting
from modicum.kernels.selection import prune_lowest, prune_lowest_global, semi_structured
from modicum.method import LayerMethod, Target
from modicum.prune.apt import APT
from modicum.prune.magnitude import Magnitude
from modicum.prune.sparsegpt import SparseGPT
from modicum.prune.wanda import Wanda

METHODS = [Magnitude, Wanda, SparseGPT, APT]
PATTERNS = [(2, 4), (1, 4), (4, 8)]
SIZES = st.tuples(st.integers(1, 24), st.integers(1, 70), st.integers(0, 10_000))
SPARSITY = st.floats(0, 0.99)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def statistics_of(inputs: Tensor) -> Statistics:
    found = Statistics(frozenset({"gram"}))
    found.update(inputs)
    return found


def correlated(tokens: int, width: int, seed: int) -> Tensor:
    return (
        normal(tokens, width, seed=seed)
        @ normal(width, width, seed=seed + 1)
        * (normal(width, seed=seed + 2).abs() + 0.2)
    )


def white(width: int) -> Statistics:
    return Statistics.of_white_noise(frozenset({"gram", "column_norm"}), width, torch.device("cpu"))


def dense(method: LayerMethod, weight: Tensor, statistics: Statistics, zeros: Tensor | None = None) -> Tensor:
    return method.compress(Target("block.layer", "q", weight, None, zeros), statistics).to_dense()


@settings(deadline=None, max_examples=40)
@given(size=SIZES, sparsity=SPARSITY)
def test_wanda_takes_the_same_number_from_every_row(size: tuple[int, int, int], sparsity: float) -> None:
    rows, width, seed = size
    weight, inputs = normal(rows, width, seed=seed), correlated(2 * width, width, seed)
    pruned = dense(Wanda(sparsity=sparsity), weight, statistics_of(inputs))
    assert (pruned == 0).sum(1).tolist() == [int(width * sparsity)] * rows
    assert torch.equal(pruned[pruned != 0], weight[pruned != 0])
    score = weight.abs() * inputs.norm(dim=0)
    for row in range(rows):
        gone, kept = score[row][pruned[row] == 0], score[row][pruned[row] != 0]
        assert not len(gone) or gone.max() <= kept.min() * (1 + 1e-5)


@settings(deadline=None, max_examples=40)
@given(size=SIZES, sparsity=SPARSITY)
def test_magnitude_takes_the_smallest_of_the_matrix(size: tuple[int, int, int], sparsity: float) -> None:
    rows, width, seed = size
    weight = normal(rows, width, seed=seed)
    pruned = dense(Magnitude(sparsity=sparsity), weight, Statistics())
    assert int((pruned == 0).sum()) == int(sparsity * rows * width)
    largest_gone = weight[pruned == 0].abs().max() if bool((pruned == 0).any()) else torch.tensor(0.0)
    assert largest_gone <= pruned[pruned != 0].abs().min()
    by_row = dense(Magnitude(sparsity=sparsity, scope="row"), weight, Statistics())
    assert (by_row == 0).sum(1).tolist() == [int(sparsity * width)] * rows


@settings(deadline=None, max_examples=25)
@given(size=SIZES, sparsity=SPARSITY, block=st.sampled_from([1, 7, 32, 128]))
def test_sparsegpt_takes_an_exact_count_of_every_block(
    size: tuple[int, int, int], sparsity: float, block: int
) -> None:
    rows, width, seed = size
    method = SparseGPT(sparsity=sparsity, block_size=block)
    weight = normal(rows, width, seed=seed)
    pruned = dense(method, weight, statistics_of(correlated(2 * width, width, seed)))
    counts = [int((part == 0).sum()) for part in pruned.split(block, dim=1)]
    assert counts == [int(sparsity * part.numel()) for part in weight.split(block, dim=1)]


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_every_group_loses_exactly_m_minus_n(kind: Any, n: int, m: int) -> None:
    weight = normal(24, 160)
    pruned = dense(kind(pattern=f"{n}:{m}"), weight, statistics_of(correlated(200, 160, 1)))
    assert bool(((pruned == 0).unflatten(1, (-1, m)).sum(-1) == m - n).all())


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("rows", [2, 3])  # 2 rows of 6 make whole groups of 4, which are none the less wrong
def test_a_row_without_whole_groups_is_refused_by_name(kind: Any, rows: int) -> None:
    method, weight = kind(pattern="2:4"), normal(rows, 6)
    with pytest.raises(InvalidSetting, match=r"block\.layer has 6 inputs"):
        dense(method, weight, white(6))
    with pytest.raises(InvalidSetting, match="6 inputs"):
        method.expected_form(weight.to("meta"))


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sparsity_zero_changes_no_bit(kind: Any, dtype: torch.dtype) -> None:
    weight = normal(16, 70).to(dtype)
    weight[0, 0] = 0
    assert torch.equal(dense(kind(sparsity=0), weight, statistics_of(correlated(140, 70, 3))), weight)


@settings(deadline=None, max_examples=25)
@given(size=SIZES, sparsity=SPARSITY)
def test_wanda_with_equal_norms_is_magnitude_by_row(size: tuple[int, int, int], sparsity: float) -> None:
    rows, width, seed = size
    weight = normal(rows, width, seed=seed)
    by_row = dense(Magnitude(sparsity=sparsity, scope="row"), weight, Statistics())
    assert torch.equal(dense(Wanda(sparsity=sparsity), weight, white(width)), by_row)


@settings(deadline=None, max_examples=25)
@given(size=SIZES, sparsity=SPARSITY)
def test_sparsegpt_on_white_noise_is_magnitude_by_block(size: tuple[int, int, int], sparsity: float) -> None:
    rows, width, seed = size
    weight = normal(rows, width, seed=seed)
    pruned = dense(SparseGPT(sparsity=sparsity, block_size=32), weight, white(width))
    parts = [
        part.masked_fill(prune_lowest_global(part.abs(), int(sparsity * part.numel())), 0)
        for part in weight.split(32, dim=1)
    ]
    assert torch.equal(pruned, torch.cat(parts, dim=1))


@pytest.mark.parametrize("kind", METHODS)
def test_patterns_on_white_noise_are_magnitude(kind: Any) -> None:
    weight = normal(16, 64)
    expected = weight.masked_fill(semi_structured(weight.abs(), 2, 4), 0)
    assert torch.equal(dense(kind(pattern="2:4"), weight, white(64)), expected)


@pytest.mark.parametrize("kind", [Magnitude, Wanda])
@pytest.mark.parametrize("again", [{"sparsity": 0.5}, {"pattern": "2:4"}])
def test_what_is_zero_already_counts_even_beside_dead_inputs(kind: Any, again: dict[str, Any]) -> None:
    inputs = correlated(128, 64, 5)
    inputs[:, ::4] = 0  # these columns have score 0 as well and stand before the zeros
    zeros = torch.zeros(16, 64, dtype=torch.bool)
    zeros[:, 1::2] = True
    weight = normal(16, 64).masked_fill(zeros, 0)
    assert torch.equal(dense(kind(**again), weight, statistics_of(inputs), zeros), weight)


@pytest.mark.parametrize("kind", METHODS)
def test_pruning_further_adds_to_the_zeros_that_are_there(kind: Any) -> None:
    inputs = statistics_of(correlated(128, 64, 5))
    weight = dense(Wanda(pattern="2:4"), normal(16, 64), inputs)
    pruned = dense(kind(sparsity=0.75), weight, inputs, weight == 0)
    assert int((pruned == 0).sum()) == 0.75 * weight.numel()
    assert not bool(((weight == 0) & (pruned != 0)).any())


def test_a_dead_input_loses_its_weights_first() -> None:
    inputs = correlated(100, 20, 7)
    inputs[:, 4] = 0
    weight = normal(8, 20)
    weight[:, 4] = 100
    assert dense(Wanda(sparsity=0.1), weight, statistics_of(inputs))[:, 4].count_nonzero() == 0
    assert dense(SparseGPT(sparsity=0.1), weight, statistics_of(inputs))[:, 4].count_nonzero() == 0


@pytest.mark.parametrize("seed", range(3))
def test_the_better_method_makes_the_smaller_output_error(seed: int) -> None:
    weight = normal(64, 128, seed=seed)
    mixing = normal(128, 128, seed=seed + 10) / 128**0.5 + torch.eye(128)
    inputs = normal(1024, 128, seed=seed + 20) @ mixing * normal(128, seed=seed + 30).exp()
    statistics = statistics_of(inputs)

    def error(method: LayerMethod) -> float:
        change = dense(method, weight, statistics) - weight
        return float((inputs @ change.T).square().sum() / (inputs @ weight.T).square().sum())

    by_size, by_score, corrected = error(Magnitude()), error(Wanda()), error(SparseGPT())
    assert corrected < 0.95 * by_score < 0.5 * by_size
    row = weight.masked_fill(prune_lowest(weight.abs() * inputs.norm(dim=0), 64), 0)
    assert by_score == pytest.approx(
        float((inputs @ (row - weight).T).square().sum() / (inputs @ weight.T).square().sum())
    )


@pytest.mark.parametrize("text", ["2:4:6", "4:2", "0:4", "2:65", "a:b", "", "124", 124, "2-4", ["2:4"]])
def test_what_is_no_pattern_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="must look like 2:4"):
        Wanda(pattern=text)


def test_a_pattern_is_written_as_it_was_read() -> None:
    method = Wanda(pattern="4:8")  # type: ignore[arg-type]
    assert method.settings()["pattern"] == "4:8"
    assert Wanda(**method.settings()) == method
    assert Wanda().settings()["pattern"] is None


@pytest.mark.parametrize("kind", METHODS)
def test_zeros_that_are_there_take_no_bytes(kind: Any) -> None:
    weight = normal(16, 64)
    zeros = weight < 0
    form = kind(sparsity=0).compress(Target("x", "q", weight.masked_fill(zeros, 0), None, zeros), white(64))
    assert form.tensors()["weight_values"].numel() == int((~zeros).sum())
