"""Integer quantizers: limiting cases, what becomes of zeros and dead inputs, and published error figures."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modicum.calibrate.block import CalibratedBlock, observe
from modicum.calibrate.statistics import Statistics
from modicum.errors import InvalidSetting
from modicum.method import Target, build
from modicum.models import Block, Layer
from modicum.models.folds import ResolvedFold
from modicum.models.storage import LinearStorage
from modicum.quantize.awq import AWQ
from modicum.quantize.gptq import GPTQ
from modicum.quantize.grid import IntegerMethod
from modicum.quantize.rtn import RTN
from modicum.weights.packed import PackedWeight

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
GROUPS = st.sampled_from([-1, 8, 16, 25, 128])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def statistics_of(inputs: Tensor) -> Statistics:
    found = Statistics(frozenset({"gram", "mean_abs", "sample"}))
    found.update(inputs)
    return found


def packed(
    method: IntegerMethod, weight: Tensor, found: Statistics, zeros: Tensor | None = None
) -> PackedWeight:
    form = method.compress(Target("block.layer", "down", weight, None, zeros), found)
    assert isinstance(form, PackedWeight)
    return form


@settings(deadline=None, max_examples=40)
@given(
    bits=st.integers(2, 8),
    group=GROUPS,
    symmetric=st.booleans(),
    dtype=DTYPES,
    width=st.integers(1, 70),
    seed=st.integers(0, 999),
)
def test_gptq_on_independent_inputs_is_round_to_nearest(
    bits: int, group: int, symmetric: bool, dtype: torch.dtype, width: int, seed: int
) -> None:
    weight = normal(9, width, seed=seed).to(dtype)
    found = statistics_of(torch.diag(normal(width, seed=seed + 1).abs() + 0.1))
    grid = {"bits": bits, "group_size": group, "symmetric": symmetric}
    expected = packed(RTN(**grid), weight, found)
    for method in (GPTQ(**grid, act_order=False), GPTQ(**grid, act_order=False, block_size=5), GPTQ(**grid)):
        form = packed(method, weight, found)
        assert torch.equal(form.codes(), expected.codes())
        assert torch.equal(form.weight_scale, expected.weight_scale)
        assert torch.equal(form.to_dense(), expected.to_dense())


@settings(deadline=None, max_examples=40)
@given(bits=st.integers(2, 8), group=GROUPS, symmetric=st.booleans(), width=st.integers(1, 70))
def test_round_to_nearest_is_nearest(bits: int, group: int, symmetric: bool, width: int) -> None:
    weight = normal(9, width, seed=width)
    form = packed(RTN(bits=bits, group_size=group, symmetric=symmetric), weight, Statistics())
    span = width if group == -1 else min(group, width)
    scale = form.weight_scale.repeat_interleave(span, dim=1)[:, :width]
    # a symmetric grid ends half a step short of its largest positive weight, an asymmetric zero is rounded
    reach = 0.5 if symmetric else 1.0
    assert bool(((form.to_dense() - weight).abs() <= reach * scale * 1.001).all())
    inner = (
        (weight.abs() < 0.8 * weight.abs().max()) if symmetric else torch.zeros_like(weight, dtype=torch.bool)
    )
    assert bool(((form.to_dense() - weight).abs() <= 0.5 * scale * 1.001)[inner].all())


@pytest.mark.parametrize("act_order", [False, True])
def test_the_block_size_changes_no_code_of_gptq(act_order: bool) -> None:
    weight, inputs = normal(32, 200), low_rank_inputs(200)
    forms = [
        packed(GPTQ(group_size=50, act_order=act_order, block_size=size), weight, statistics_of(inputs))
        for size in (1, 17, 128, 200)
    ]
    for other in forms[1:]:  # sums in another order let a few ties fall the other way
        assert float((forms[0].codes() != other.codes()).float().mean()) < 0.01
        errors = [relative(inputs, weight, form.to_dense()) for form in (forms[0], other)]
        assert errors[0] == pytest.approx(errors[1], rel=0.01)


def test_a_whole_row_in_falling_order_needs_no_reordering() -> None:
    inputs = low_rank_inputs(64)
    inputs = inputs[:, inputs.norm(dim=0).argsort(descending=True)]
    weight, found = normal(16, 64), statistics_of(inputs)
    forms = [packed(GPTQ(group_size=-1, act_order=order), weight, found) for order in (False, True)]
    assert torch.equal(forms[0].codes(), forms[1].codes())


@pytest.mark.parametrize("act_order", [False, True])
def test_dead_inputs_take_no_code_and_disturb_nobody(act_order: bool) -> None:
    inputs, weight = low_rank_inputs(64), normal(16, 64)
    inputs[:, [0, 17, 63]] = 0
    dense = packed(GPTQ(group_size=16, act_order=act_order), weight, statistics_of(inputs)).to_dense()
    assert dense[:, [0, 17, 63]].count_nonzero() == 0
    louder = weight.clone()
    louder[:, [0, 17, 63]] = 1000
    again = packed(GPTQ(group_size=16, act_order=act_order), louder, statistics_of(inputs)).to_dense()
    assert torch.equal(again, dense)


@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_makes_up_for_zeros_that_it_must_keep(act_order: bool) -> None:
    inputs, weight = low_rank_inputs(64), normal(16, 64)
    zeros = normal(16, 64, seed=5) > 0.8
    given = weight.masked_fill(zeros, 0)
    dense = packed(GPTQ(act_order=act_order), given, statistics_of(inputs), zeros).to_dense()
    nearest = packed(RTN(), given, Statistics(), zeros).to_dense()
    assert dense[zeros].count_nonzero() == nearest[zeros].count_nonzero() == 0
    assert relative(inputs, given, dense) < relative(inputs, given, nearest)


def low_rank_inputs(width: int, seed: int = 0) -> Tensor:
    """Inputs of rank 64 with noise; eight channels are twenty times as loud. [8 * width, width]"""
    inputs = normal(8 * width, 64, seed=seed) @ normal(64, width, seed=seed + 1) / 8
    inputs += 0.35 * normal(8 * width, width, seed=seed + 2)
    inputs[:, torch.randperm(width, generator=torch.Generator().manual_seed(seed))[:8]] *= 20
    return inputs


def relative(inputs: Tensor, weight: Tensor, changed: Tensor) -> float:
    """|X (W' - W)^T|^2 / |X W^T|^2."""
    return float((inputs @ (changed - weight).T).square().sum() / (inputs @ weight.T).square().sum())


@dataclass
class _Parent:
    """A block of one linear layer behind a norm's gain, as AWQ sees it."""

    gain: nn.Module
    linear: nn.Linear

    def block(self) -> tuple[Block, Layer]:
        module = nn.Module()
        module.norm, module.linear = self.gain, self.linear
        layer = Layer("b.linear", "down", 0, LinearStorage(self.linear), module, "linear")
        fold = ResolvedFold("b.norm", self.gain, (layer,), (), "b.linear", False)
        return Block(0, "b", module, (layer,), (), (fold,), None, None, None), layer


@torch.no_grad()
def awq_error(inputs: Tensor, weight: Tensor, bits: int) -> float:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.copy_(weight)
    block, layer = _Parent(nn.LayerNorm(weight.shape[1], bias=False), linear).block()
    method = AWQ(bits=bits, clip=False)
    calibrated: CalibratedBlock = observe(
        block, lambda i, x: linear(x), [inputs], {"b.linear": method.statistics()}, ["b.linear"]
    )
    method.prepare(calibrated)
    form = packed(method, layer.weight.detach(), calibrated.layer_statistics(layer))
    gain: Tensor = block.module.norm.weight  # type: ignore[assignment, union-attr]
    return relative(inputs, weight, form.to_dense() * gain)


@pytest.mark.parametrize(
    ("bits", "nearest", "compensated", "ordered", "scaled"),
    [(4, 0.0099, 0.0015, 0.0010, 0.0038), (3, 0.044, 0.0074, 0.0045, 0.018), (2, 0.24, 0.055, 0.025, 0.091)],
)
def test_errors_on_correlated_inputs_are_those_measured_before(
    bits: int, nearest: float, compensated: float, ordered: float, scaled: float
) -> None:
    inputs, weight = low_rank_inputs(512), normal(128, 512, seed=9)
    found = statistics_of(inputs)

    def error(method: IntegerMethod) -> float:
        return relative(inputs, weight, packed(method, weight, found).to_dense())

    grid = {"bits": bits, "group_size": 128, "symmetric": False}
    measured = {
        "rtn": error(RTN(**grid)),
        "gptq": error(GPTQ(**grid, act_order=False)),
        "ordered": error(GPTQ(**grid)),
        "awq": awq_error(inputs, weight, bits),
    }
    assert measured["ordered"] <= measured["gptq"] <= measured["awq"] <= measured["rtn"]
    for name, figure in zip(measured, (nearest, compensated, ordered, scaled), strict=True):
        assert measured[name] == pytest.approx(figure, rel=0.2), name


def test_a_searched_range_loses_less() -> None:
    weight = normal(32, 128) ** 3
    errors = [
        (packed(RTN(bits=3, clip_search=search), weight, Statistics()).to_dense() - weight)
        .abs()
        .pow(2.4)
        .sum()
        for search in (False, True)
    ]
    assert errors[1] < 0.95 * errors[0]


@pytest.mark.parametrize("name", ["quantize.rtn", "quantize.gptq", "quantize.awq"])
@pytest.mark.parametrize("setting", [{"bits": 1}, {"bits": 9}, {"group_size": 0}, {"group_size": -2}])
def test_grids_that_do_not_exist_are_refused(name: str, setting: dict[str, int]) -> None:
    with pytest.raises(InvalidSetting, match=f"{name}: {next(iter(setting))}: "):
        build(name, setting)


def test_the_scales_are_stored_in_the_dtype_of_the_weights() -> None:
    weight = normal(8, 32).bfloat16()
    for method in (RTN(), GPTQ(), AWQ()):
        form = packed(method, weight, statistics_of(normal(64, 32)))
        assert form.weight_scale.dtype == form.to_dense().dtype == torch.bfloat16
