"""Formulas as scores: the named ones equal plain torch and the methods they come from; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modicum.calibrate.directions import Directions
from modicum.calibrate.statistics import DIRECTIONS, Statistics
from modicum.errors import InvalidSetting
from modicum.kernels.selection import prune_lowest
from modicum.method import LayerMethod, Target, build
from modicum.prune.ace import ACE
from modicum.prune.magnitude import Magnitude
from modicum.prune.metrics import METRICS
from modicum.prune.pruner_zero import PrunerZero
from modicum.prune.wanda import Wanda

TREE = {
    "data": "mul",
    "left": {"data": "abs", "left": {"data": "mul", "left": {"data": "W"}, "right": {"data": "W"}}},
    "right": {"data": "mms", "left": {"data": "G"}},
}
ROWS, WIDTH = 12, 40


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


WEIGHT, GRADIENT = normal(ROWS, WIDTH), normal(ROWS, WIDTH, seed=1).abs()
INPUTS = normal(90, WIDTH, seed=2) * (normal(WIDTH, seed=3).abs() + 0.1)


def known(wanted: frozenset[str], x: Tensor = INPUTS, weight: Tensor = WEIGHT, **more: Any) -> Statistics:
    found = Statistics(wanted, **more)
    found.update(x)
    directions = Directions(wanted & DIRECTIONS)
    directions.update(x, weight)
    found.matrices = {"gradient": GRADIENT, **directions.matrices()}
    return found


def zeros(method: LayerMethod, statistics: Statistics | None = None, weight: Tensor = WEIGHT) -> Tensor:
    """Bool [out, in], where the pruned matrix is zero."""
    statistics = statistics or known(method.statistics(), weight=weight)
    return method.compress(Target("block.layer", "q", weight), statistics).to_dense() == 0


def lowest(scores: Tensor) -> Tensor:
    return prune_lowest(scores, scores.shape[1] // 2)


class TestNamedMetrics:
    def test_they_equal_the_methods_they_come_from(self) -> None:
        assert torch.equal(zeros(PrunerZero(metric="wanda")), zeros(Wanda()))
        assert torch.equal(zeros(PrunerZero(metric="magnitude")), zeros(Magnitude(scope="row")))
        for pattern in ("2:4", "4:8"):
            wanda = build("prune.wanda", {"pattern": pattern})
            ours = build("prune.pruner_zero", {"pattern": pattern, "metric": "wanda"})
            assert isinstance(wanda, LayerMethod)
            assert isinstance(ours, LayerMethod)
            assert torch.equal(zeros(ours), zeros(wanda))

    def test_they_equal_plain_torch(self) -> None:
        size, norm = WEIGHT.abs(), INPUTS.norm(dim=0)
        share = size / size.sum(0) + size / size.sum(1, keepdim=True)
        expected = {
            "ria": share * norm.sqrt(),
            "gblm": size * norm / 3**0.5 + size * GRADIENT,
            "pruner_zero": WEIGHT.square() * (GRADIENT - GRADIENT.min()),
        }
        for name, scores in expected.items():
            method = PrunerZero(metric=name)
            statistics = known(method.statistics(), sequences=3)
            assert torch.equal(zeros(method, statistics), lowest(scores)), name

    def test_only_what_a_formula_names_is_collected(self) -> None:
        asked = {name: PrunerZero(metric=name).statistics() for name in METRICS}
        assert asked == {
            "magnitude": frozenset(),
            "wanda": {"column_norm"},
            "ria": {"column_norm"},
            "gblm": {"column_norm", "gradient"},
            "pruner_zero": {"gradient"},
        }

    def test_a_gradient_that_tells_nothing_leaves_magnitude(self) -> None:
        by_size = zeros(Magnitude(scope="row"))
        constant = Statistics(frozenset({"gradient"}), 1, matrices={"gradient": torch.ones(ROWS, WIDTH)})
        assert torch.equal(zeros(PrunerZero(), constant), by_size)
        one_less = torch.ones(ROWS, WIDTH)
        one_less[3, 5] = 0.5
        nearly = Statistics(frozenset({"gradient"}), 1, matrices={"gradient": one_less})
        found = zeros(PrunerZero(), nearly)
        others = torch.arange(ROWS) != 3
        assert torch.equal(found[others], by_size[others])
        assert bool(found[3, 5])


class TestFormulas:
    @pytest.mark.parametrize("tree", [TREE, json.dumps(TREE)])
    def test_published_trees_keep_their_meaning(self, tree: Any, tmp_path: Path) -> None:
        method = PrunerZero(metric=tree)
        assert method.metric == "abs(abs(W) * abs(W)) * mms(G)"
        assert torch.equal(zeros(method), zeros(PrunerZero()))
        file = tmp_path / "tree.json"
        file.write_text(json.dumps(TREE))
        assert PrunerZero(metric=str(file)) == method
        assert PrunerZero(**method.settings()) == method
        signed = PrunerZero(metric={"data": "mul", "left": {"data": "W"}, "right": {"data": "X"}})
        assert signed.metric == "abs(W) * sqr(X)"

    def test_the_weight_of_a_formula_has_a_sign(self) -> None:
        kept = ~zeros(PrunerZero(metric="W"))
        assert float(WEIGHT[kept].mean()) > 0.5

    def test_negative_scores_do_not_bring_back_what_was_pruned(self) -> None:
        gone = normal(ROWS, WIDTH, seed=9) > 0.3
        weight = WEIGHT.masked_fill(gone, 0)
        method = PrunerZero(metric="log(W) - 100")
        target = Target("block.layer", "q", weight, None, gone)
        found = method.compress(target, known(method.statistics())).to_dense() == 0
        assert bool(found[gone].all())
        assert (found.sum(1) == torch.maximum(gone.sum(1), torch.tensor(WIDTH // 2))).all()

    def test_norm_of_x_is_x(self) -> None:
        assert PrunerZero(metric="abs(W) * norm(X)").metric == "abs(W) * X"

    @pytest.mark.parametrize(
        ("metric", "complaint"),
        [
            ("abs(W) * Y", "no input named 'Y'"),
            ("wnada", "no input named"),
            ("import os", "no formula"),
            ("mean(W)", "is a scalar"),
            ("W - W", "same value everywhere"),
            ("1e30 * W * 1e30", "NaN or infinity"),
            ('{"data": "mod"}', "label of a tree"),
            ('{"data": ', "no JSON tree"),
            ("missing.json", "no JSON tree"),
            ("", "no formula"),
        ],
    )
    def test_what_is_no_score_is_refused_with_the_name_of_the_setting(
        self, metric: str, complaint: str
    ) -> None:
        with pytest.raises(InvalidSetting, match=f"(?s)prune.pruner_zero: metric: .*{complaint}"):
            build("prune.pruner_zero", {"metric": metric})

    def test_a_score_that_overflows_at_a_layer_names_it(self) -> None:
        method = PrunerZero(metric="sqr(sqr(W)) * X")
        statistics = known(method.statistics())
        with pytest.raises(InvalidSetting, match=r"At block.layer the formula .* NaN or infinity"):
            zeros(method, statistics, WEIGHT * 1e15)


class TestACE:
    def test_a_constant_channel_goes_first_and_an_offset_does_not_matter(self) -> None:
        x = INPUTS.clone()
        x[:, 4] = 50.0
        assert bool(zeros(ACE(score="varp"), known(frozenset({"column_var"}), x))[:, 4].all())
        assert not bool(zeros(Wanda(), known(frozenset({"column_norm"}), x))[:, 4].any())
        shifted = INPUTS + torch.arange(WIDTH)
        before, after = (
            zeros(ACE(score="varp"), known(frozenset({"column_var"}), v)) for v in (INPUTS, shifted)
        )
        assert (before != after).float().mean() < 0.01

    def test_without_means_varp_is_wanda(self) -> None:
        x = torch.cat([INPUTS, -INPUTS])
        ours = zeros(ACE(score="varp"), known(frozenset({"column_var"}), x))
        assert (ours != zeros(Wanda(), known(frozenset({"column_norm"}), x))).float().mean() < 0.01

    @pytest.mark.parametrize("expansion", ["first", "exact"])
    def test_scores_are_the_formulas(self, expansion: str) -> None:
        a = INPUTS @ WEIGHT.T
        square, size = a.square().sum(1, keepdim=True), WEIGHT.abs()
        cosp = size * INPUTS.norm(dim=0) * ((a.abs() / square).T @ INPUTS.abs())
        if expansion == "exact":
            cosp = size * (((1 - a.square() / square) / square).T @ INPUTS.square()).sqrt()
        varp = size * INPUTS.std(0, correction=0)
        both = cosp / cosp.mean() + 0.5 * varp / varp.mean()
        for score, expected in (("cosp", cosp), ("varp", varp), ("both", both)):
            method = ACE(score=score, expansion=expansion, balance=0.5)
            assert (zeros(method) != lowest(expected)).float().mean() < 0.01

    def test_nothing_is_collected_that_is_not_read(self) -> None:
        assert ACE(score="varp").statistics() == {"column_var"}
        assert ACE(score="cosp", expansion="first").statistics() == {"column_norm", "alignment"}
        assert ACE().statistics() == {"column_norm", "column_var", "turning"}

    def test_one_output_is_pruned_like_wanda(self) -> None:
        row = WEIGHT[:1]
        method = ACE(score="cosp", expansion="exact")
        assert torch.equal(zeros(method, None, row), zeros(Wanda(), None, row))

    @pytest.mark.parametrize("kind", [ACE, PrunerZero])
    @pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8)])
    def test_patterns_and_counts_are_exact(self, kind: Any, n: int, m: int) -> None:
        groups = zeros(kind(pattern=f"{n}:{m}")).unflatten(1, (-1, m))
        assert bool((groups.sum(-1) == m - n).all())
        assert (zeros(kind(sparsity=0.3)).sum(1) == int(0.3 * WIDTH)).all()
        assert not bool(zeros(kind(sparsity=0.0)).any())
