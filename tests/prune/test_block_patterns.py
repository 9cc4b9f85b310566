"""Whole blocks and whole rows: exact counts, the lowest sums, promises that hold and are seen to be broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modicum import api
from modicum.calibrate.statistics import MATRICES, Statistics
from modicum.errors import InvalidSetting, PromiseBroken
from modicum.method import LayerMethod, Target, build
from modicum.models import Anatomy
from modicum.pipeline.loading import load_model
from modicum.pipeline.memory_run import compress_model
from modicum.pipeline.promises import property_named
from modicum.pipeline.recipe import parse
from modicum.prune.ace import ACE
from modicum.prune.apt import APT
from modicum.prune.magnitude import Magnitude
from modicum.prune.pattern import Blocks
from modicum.prune.pruner_zero import PrunerZero
from modicum.prune.sparsegpt import SparseGPT
from modicum.prune.wanda import Wanda
from modicum.weights import DenseWeight
from modicum.weights.properties import BlockPattern, ZeroMask

SCORED = [Magnitude, Wanda, ACE, PrunerZero]
COMPENSATED = [SparseGPT, APT]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs_of(width: int, seed: int = 1) -> Tensor:
    return normal(3 * width, width, seed=seed) @ normal(width, width, seed=seed + 1)


def known(method: LayerMethod, shape: torch.Size, seed: int = 1) -> Statistics:
    statistics = Statistics(method.statistics() | {"column_norm"})
    statistics.update(inputs_of(shape[1], seed))
    statistics.matrices = {kind: normal(*shape, seed=5).abs() for kind in statistics.wanted & MATRICES}
    return statistics


def pruned(method: LayerMethod, weight: Tensor, zeros: Tensor | None = None) -> Tensor:
    target = Target("block.layer", "q", weight, None, zeros)
    return method.compress(target, known(method, weight.shape)).to_dense()


def zero_blocks(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """Bool [out / rows, in / columns], where a whole block is zero."""
    cut = [band.split(columns, 1) for band in matrix.split(rows, 0)]
    return torch.tensor([[not bool(block.any()) for block in band] for band in cut])


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 8),
    columns=st.integers(1, 12),
    down=st.integers(1, 6),
    across=st.integers(1, 6),
    sparsity=st.floats(0, 0.99),
    seed=st.integers(0, 999),
)
def test_the_blocks_of_the_lowest_sums_go(
    rows: int, columns: int, down: int, across: int, sparsity: float, seed: int
) -> None:
    weight = normal(rows * down, columns * across, seed=seed)
    for kind, scale in ((Magnitude, 1), (Wanda, inputs_of(weight.shape[1]).norm(dim=0))):
        found = pruned(kind(sparsity=sparsity, pattern=f"{rows}x{columns}"), weight)
        scores = (weight.abs() * scale).double()
        sums = [[float(b.sum()) for b in band.split(columns, 1)] for band in scores.split(rows, 0)]
        gone = zero_blocks(found, rows, columns)
        assert int(gone.sum()) == int(sparsity * down * across)
        assert int((found == 0).sum()) == int(gone.sum()) * rows * columns
        assert torch.equal(found[found != 0], weight[found != 0])
        flat, mask = torch.tensor(sums).flatten(), gone.flatten()
        if 0 < int(mask.sum()) < len(mask):
            assert flat[mask].max() <= flat[~mask].min() * (1 + 1e-5)


@pytest.mark.parametrize("kind", [*SCORED, *COMPENSATED])
@pytest.mark.parametrize("sparsity", [0, 0.3, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_method_removes_an_exact_number_of_blocks(
    kind: Any, sparsity: float, dtype: torch.dtype
) -> None:
    weight = normal(40, 96).to(dtype)
    method = kind(sparsity=sparsity, pattern="8x16")
    found = pruned(method, weight)
    count = int(sparsity * 30)
    assert int(zero_blocks(found, 8, 16).sum()) == count
    assert int((found == 0).sum()) == 128 * count
    form = method.compress(Target("x", "q", weight), known(method, weight.shape))
    assert form.nbytes == method.expected_form(weight.to("meta")).nbytes
    assert all(promise.violation(weight, form) is None for promise in method.gives())


@pytest.mark.parametrize("kind", SCORED)
def test_whole_rows(kind: Any) -> None:
    weight = normal(20, 36)
    found = pruned(kind(sparsity=0.33, pattern="row"), weight)
    gone = (found == 0).all(1)
    assert int(gone.sum()) == 6
    assert torch.equal(found[~gone], weight[~gone])
    assert torch.equal(found, pruned(kind(sparsity=0.33, pattern="1x36"), weight))


def test_blocks_of_one_weight_are_no_pattern() -> None:
    weight = normal(20, 36)
    assert torch.equal(
        pruned(Magnitude(sparsity=0.4, pattern="1x1"), weight), pruned(Magnitude(sparsity=0.4), weight)
    )


@pytest.mark.parametrize("block_size", [1, 20, 128])
@pytest.mark.parametrize("kind", COMPENSATED)
def test_on_white_noise_blocks_go_by_their_squares(kind: Any, block_size: int) -> None:
    weight = normal(16, 64)
    method = kind(sparsity=0.3, pattern="4x8", block_size=block_size)
    white = Statistics.of_white_noise(frozenset({"gram"}), 64, torch.device("cpu"))
    found = method.compress(Target("x", "q", weight), white).to_dense()
    assert int(zero_blocks(found, 4, 8).sum()) == int(0.3 * 32)
    if block_size == 128:
        sums = torch.tensor([[float(b.square().sum()) for b in r.split(8, 1)] for r in weight.split(4, 0)])
        lowest = sums.flatten().argsort()[: int(0.3 * 32)]
        assert set(zero_blocks(found, 4, 8).flatten().nonzero().flatten().tolist()) == set(lowest.tolist())


@pytest.mark.parametrize("seed", range(3))
def test_what_makes_up_for_the_zeros_makes_the_smaller_error(seed: int) -> None:
    weight = normal(48, 96, seed=seed)
    inputs = inputs_of(96)  # those of `known`

    def error(method: LayerMethod) -> float:
        return float((inputs @ (pruned(method, weight) - weight).T).square().sum())

    settings: dict[str, Any] = {"sparsity": 0.3, "pattern": "4x8"}
    errors = [error(kind(**settings)) for kind in (APT, SparseGPT, Magnitude)]
    assert errors == sorted(errors)
    assert errors[1] < 0.9 * errors[2]


@pytest.mark.parametrize("kind", [*SCORED, *COMPENSATED])
def test_what_is_zero_counts_nothing_and_stays(kind: Any) -> None:
    zeros = torch.zeros(16, 32, dtype=torch.bool)
    zeros[4:8, 8:16] = zeros[0, ::2] = True
    weight = normal(16, 32).masked_fill(zeros, 0)
    found = pruned(kind(sparsity=0.25, pattern="4x8"), weight, zeros)
    blocks = zero_blocks(found, 4, 8)
    assert int(blocks.sum()) == 4
    assert bool(blocks[1, 1])
    assert not bool(found[zeros].any())


@pytest.mark.parametrize("kind", [*SCORED, *COMPENSATED])
def test_what_does_not_divide_is_refused_by_name(kind: Any) -> None:
    for pattern in ("16x8", "8x16"):
        method, weight = kind(pattern=pattern), normal(24, 24)
        with pytest.raises(InvalidSetting, match=r"block\.layer has 24x24 weights, which do not divide into"):
            pruned(method, weight)
        with pytest.raises(InvalidSetting, match="24x24 weights"):
            method.expected_form(weight.to("meta"))


@pytest.mark.parametrize("name", ["prune.sparsegpt", "prune.apt"])
def test_rows_are_refused_where_the_rest_should_make_up_for_them(name: str) -> None:
    with pytest.raises(InvalidSetting, match=r"a whole row leaves no weight .* prune\.wanda"):
        build(name, {"pattern": "row"})


@pytest.mark.parametrize("name", ["prune.wanda", "prune.magnitude", "prune.sparsegpt"])
def test_groups_are_not_shared_out_but_blocks_are(name: str) -> None:
    with pytest.raises(InvalidSetting, match=r"the pattern 2:4 fixes the share"):
        build(name, {"pattern": "2:4", "allocation": "owl"})
    assert build(name, {"pattern": "16x16", "allocation": "owl"}).settings()["allocation"] == "owl"


@pytest.mark.parametrize(
    "text", ["0x4", "4x0", "4x", "x4", "4X4", "4x4x4", "5000x1", "rows", "1x99999999999"]
)
def test_what_is_no_block_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="or be row"):
        Wanda(pattern=text)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["16x16", "1x4", "row"])
def test_a_block_is_written_as_it_was_read(text: str) -> None:
    method = Wanda(pattern=text)  # type: ignore[arg-type]
    assert method.settings()["pattern"] == text
    assert Wanda(**method.settings()) == method


class TestPromise:
    def test_too_few_blocks_are_seen(self) -> None:
        weight = normal(8, 8)
        weight[:4, :4] = 0
        promise = BlockPattern(4, 4, 0.5)
        complaint = promise.violation(weight, DenseWeight.from_dense(weight))
        assert complaint == "1 of 4 are zero, not 2"
        assert BlockPattern(4, 4, 0.25).violation(weight, DenseWeight.from_dense(weight)) is None
        weight[4:, 4:] = 0
        assert promise.violation(weight, DenseWeight.from_dense(weight)) is None
        assert "divide" in str(BlockPattern(3, 4, 0.5).violation(weight, DenseWeight.from_dense(weight)))
        assert BlockPattern(1, None, 0.5).violation(weight, DenseWeight.from_dense(weight)) is not None

    def test_it_is_a_zero_mask_that_whoever_keeps_zeros_keeps(self) -> None:
        assert isinstance(BlockPattern(4, 4, 0.5), ZeroMask)
        assert BlockPattern(4, 4, 0.5) != ZeroMask()
        assert len({BlockPattern(4, 4, 0.5).name, BlockPattern(1, None, 0.5).name, ZeroMask().name}) == 3

    @given(sparsity=st.floats(0, 0.9999), rows=st.integers(1, 4096), columns=st.none() | st.integers(1, 4096))
    def test_its_name_says_all_of_it(self, sparsity: float, rows: int, columns: int | None) -> None:
        promise = BlockPattern(rows if columns else 1, columns, sparsity)
        assert property_named(promise.name) == promise

    @pytest.mark.parametrize("words", ["0x4 blocks", "4x0 blocks", "4 blocks", "columns"])
    def test_a_damaged_name_promises_nothing(self, words: str) -> None:
        assert property_named(f"zeros in 0.5 of its {words}") is None
        assert property_named("zeros in 2.0 of its rows") is None

    def test_a_later_run_takes_it_over(self, tiny_llama: Path, tokens: Tensor, tmp_path: Path) -> None:
        steps = [{"prune.wanda": {"sparsity": 0.4, "pattern": "16x16"}}]
        api.prepare(tiny_llama, steps, tmp_path / "blocks", data=tokens).execute()
        rtn = [{"quantize.rtn": {"group_size": 32}}]
        later = api.prepare(tmp_path / "blocks", rtn, tmp_path / "packed", form="modicum").execute()
        assert all("zeros in 0.4 of its 16x16 blocks" in held for held in later.promises.values())

    def test_quantizing_keeps_the_blocks(self, tiny_llama: Path, tokens: Tensor) -> None:
        model = load_model(tiny_llama, None, "cpu")
        steps = [{"prune.wanda": {"sparsity": 0.4, "pattern": "16x16"}}, {"quantize.rtn": {"group_size": 32}}]
        compress_model(model, parse(steps), tokens)
        for layer in Anatomy.of(model).layers():
            blocks = zero_blocks(layer.weight, 16, 16)
            assert int(blocks.sum()) >= int(0.4 * blocks.numel()), layer.name

    def test_a_run_sees_that_it_is_broken(
        self, tiny_llama: Path, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        honest = Blocks.pruned
        monkeypatch.setattr(Blocks, "pruned", lambda self, sums, width, share: honest(self, sums, width, 0.2))
        with pytest.raises(PromiseBroken, match="16x16 blocks"):
            compress_model(
                load_model(tiny_llama, None, "cpu"), parse([{"prune.wanda": {"pattern": "16x16"}}]), tokens
            )
