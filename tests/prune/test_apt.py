"""APT: the mask with the least joint loss, the optimum under it, and what follows from both."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modicum.calibrate.statistics import Statistics
from modicum.errors import InvalidSetting
from modicum.kernels.cholesky import inverse_cholesky
from modicum.kernels.selectors import JointSemiStructured, SemiStructured
from modicum.method import LayerMethod, Target
from modicum.prune.apt import APT
from modicum.prune.magnitude import Magnitude
from modicum.prune.pattern import NM
from modicum.prune.sparsegpt import SparseGPT


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(width: int, seed: int) -> Statistics:
    found = Statistics(frozenset({"gram"}))
    found.update(
        normal(4 * width, width // 2, seed=seed) @ normal(width // 2, width, seed=seed + 1)
        + 0.5 * normal(4 * width, width, seed=seed + 2)
    )
    return found


def dense(method: LayerMethod, weight: Tensor, known: Statistics, zeros: Tensor | None = None) -> Tensor:
    return method.compress(Target("block.layer", "q", weight, None, zeros), known).to_dense()


def error(weight: Tensor, changed: Tensor, known: Statistics, damp: float = 0.01) -> float:
    gram = known.gram.double()
    gram += damp * gram.diagonal().mean() * torch.eye(len(gram))
    change = (changed - weight).double()
    return float(((change @ gram) * change).sum())


@pytest.mark.parametrize("pattern", [None, NM(2, 4), NM(4, 8)], ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_errs_less_than_sparsegpt_and_that_less_than_no_update(pattern: NM | None, seed: int) -> None:
    weight, known = normal(48, 64, seed=seed), correlated(64, seed)
    apt = dense(APT(pattern=pattern), weight, known)
    greedy = dense(SparseGPT(pattern=pattern), weight, known)
    kept = weight.masked_fill(greedy == 0, 0)
    assert error(weight, apt, known) < error(weight, greedy, known) < error(weight, kept, known)


def test_under_the_mask_of_sparsegpt_it_is_the_optimum() -> None:
    weight, known = normal(20, 64, seed=3), correlated(64, 3)
    apt = dense(APT(tolerance=0, steps=500), weight, known)
    greedy = dense(SparseGPT(), weight, known)
    assert torch.equal(apt == 0, greedy == 0)
    gram = known.gram.double()
    gram += 0.01 * gram.diagonal().mean() * torch.eye(64)
    for row in range(20):
        kept = (apt[row] != 0).nonzero().flatten()
        best = torch.linalg.solve(gram[kept][:, kept], gram[kept] @ weight[row].double())
        torch.testing.assert_close(apt[row, kept].double(), best, rtol=1e-3, atol=1e-4)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 500), choice=st.sampled_from([(2, 4), (1, 4), (4, 8), (3, 6)]))
def test_a_group_loses_the_set_of_least_joint_loss(seed: int, choice: tuple[int, int]) -> None:
    n, m = choice
    width = 3 * m
    gram, columns = correlated(width, seed).gram, normal(width, 7, seed=seed + 3)
    factor, _, _ = inverse_cholesky(gram.clone(), 0.01)
    group = slice(m, 2 * m)
    pruned = JointSemiStructured(n, m, factor).choose(columns[group], factor.diagonal()[group], m)
    assert (pruned.sum(0) == m - n).all()
    inverse = torch.linalg.inv((factor.T @ factor).double().inverse()[m:, m:])[:m, :m]
    for row in range(7):
        losses = {}
        for p in map(list, combinations(range(m), m - n)):
            w = columns[group][p, row].double()
            losses[tuple(p)] = float(w @ torch.linalg.inv(inverse[p][:, p]) @ w)
        chosen = tuple(pruned[:, row].nonzero().flatten().tolist())
        assert losses[chosen] <= min(losses.values()) * (1 + 1e-3)


def test_the_joint_loss_is_half_the_error_that_the_best_correction_leaves() -> None:
    known, weight = correlated(12, 5), normal(1, 12, seed=6)
    gram = known.gram.double() + 0.01 * known.gram.diagonal().mean().double() * torch.eye(12)
    p = [0, 2, 3, 9]
    inverse = torch.linalg.inv(gram)
    change = -weight[0, p].double() @ torch.linalg.inv(inverse[p][:, p]) @ inverse[p]
    loss = weight[0, p].double() @ torch.linalg.inv(inverse[p][:, p]) @ weight[0, p].double()
    assert float(change @ gram @ change) == pytest.approx(float(loss), rel=1e-6)


def test_where_sets_are_too_many_weights_are_judged_alone() -> None:
    factor = torch.eye(32)
    columns = normal(32, 5)
    joint = JointSemiStructured(16, 32, factor)
    assert not joint.joint
    alone = SemiStructured(16, 32).choose(columns, factor.diagonal(), 0)
    assert torch.equal(joint.choose(columns, factor.diagonal(), 0), alone)


def test_without_correlations_it_is_magnitude() -> None:
    weight = normal(24, 64, seed=7)
    white = Statistics.of_white_noise(frozenset({"gram"}), 64, torch.device("cpu"))
    for pattern in (None, NM(2, 4)):
        assert torch.equal(
            dense(APT(pattern=pattern), weight, white), dense(Magnitude(pattern=pattern), weight, white)
        )


def test_earlier_zeros_stay_and_count() -> None:
    weight, known = normal(16, 64, seed=8), correlated(64, 8)
    zeros = torch.rand(16, 64, generator=torch.Generator().manual_seed(1)) < 0.3
    weight = weight.masked_fill(zeros, 0)
    apt = dense(APT(), weight, known, zeros)
    assert not apt[zeros].any()
    assert int((apt == 0).sum()) == 16 * 64 // 2


def test_dead_inputs_lose_their_weights() -> None:
    weight, inputs = normal(16, 32, seed=9), normal(100, 32, seed=10) @ normal(32, 32, seed=11)
    inputs[:, 4] = 0
    known = Statistics(frozenset({"gram"}))
    known.update(inputs)
    apt = dense(APT(), weight, known)
    assert not apt[:, 4].any()
    assert bool(torch.isfinite(apt).all())


def test_a_pattern_that_does_not_divide_is_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"block\.layer has 30 inputs"):
        dense(APT(pattern=NM(2, 4)), normal(4, 30), correlated(30, 0))
