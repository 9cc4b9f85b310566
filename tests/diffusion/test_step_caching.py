"""Step caching: exact limits, counted work, no state between generations, and who errs less at equal work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modicum import zoo
from modicum.diffusion.first_block_cache import FirstBlockCache
from modicum.diffusion.fora import FORA
from modicum.diffusion.step_cache import StepMethod, StepPolicy, Tally, policy_from_json
from modicum.diffusion.taylorseer import TaylorSeer
from modicum.errors import CheckpointError, InvalidSetting, UnsupportedModel
from modicum.method import Context, build
from modicum.models import Anatomy
from modicum.models.depth import gate, keep_blocks, ungate
from modicum.models.dit import DiT, load_dit

NEVER: list[StepMethod] = [FORA(interval=1), TaylorSeer(interval=1), FirstBlockCache(tau=0)]
SOME: list[StepMethod] = [FORA(interval=3), TaylorSeer(interval=3, order=1), FirstBlockCache(tau=0.3)]
ALWAYS = FirstBlockCache(tau=1e30)
KINDS: dict[str, dict[str, Any]] = {
    "ddpm": {"sampler": "ddpm"},
    "ddim": {"sampler": "ddim"},
    "sde": {"sampler": "sde"},
    "euler": {"sampler": "ode", "solver": "euler"},
    "heun": {"sampler": "ode", "solver": "heun"},
}
PER_STEP = {"heun": 2}


def fitted(method: StepMethod, model: DiT) -> StepPolicy:
    return method.fit(Anatomy.of(model), Context(torch.Generator()))


def drawn(model: DiT, method: StepMethod, **how: Any) -> tuple[Tensor, StepPolicy]:
    policy = fitted(method, model)
    with policy.attach(model):
        return draw(model, **how), policy


def draw(model: DiT, **how: Any) -> Tensor:
    return model.generate(**{"labels": [0, 1], "steps": 7, "seed": 0, **how})


@dataclass
class Calls:
    number: int = 0


@contextmanager
def counted(model: DiT) -> Iterator[Calls]:
    """Calls of attention and feed-forward layers, counted without the help of the cache."""
    calls = Calls()

    def count(*_: Any) -> None:
        calls.number += 1

    layers = [layer for block in model.blocks for layer in (block.attn, block.mlp)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    yield calls
    for hook in hooks:
        hook.remove()


@pytest.fixture(scope="module")
def nano() -> DiT:
    return load_dit(zoo.path("nano-dit"))


@pytest.fixture(scope="module")
def dit(bench: Any) -> DiT:
    return bench.small_dit()


@pytest.mark.parametrize("sampler", KINDS)
@pytest.mark.parametrize("method", NEVER, ids=lambda method: method.name)
@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_without_reuse_it_is_the_plain_sampler_bit_for_bit(
    bench: Any, method: StepMethod, sampler: str, cfg: float
) -> None:
    model = bench.small_dit(kind="dit" if sampler.startswith("dd") else "sit")
    how = {"cfg": cfg, **KINDS[sampler]}
    images, policy = drawn(model, method, **how)
    assert torch.equal(images, draw(model, **how))
    assert policy.tally.evaluated == policy.tally.of == 2 * 4 * 7 * PER_STEP.get(sampler, 1)


@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(1, 12), interval=st.integers(1, 6), kind=st.sampled_from(sorted(KINDS)), data=st.data()
)
def test_fora_computes_as_many_branches_as_its_formula_says(
    bench: Any, steps: int, interval: int, kind: str, data: st.DataObject
) -> None:
    depth = data.draw(st.integers(1, 3))
    model = bench.small_dit(depth=depth, kind="dit" if kind.startswith("dd") else "sit")
    passes = steps * PER_STEP.get(kind, 1)
    with counted(model) as calls:
        _, policy = drawn(model, FORA(interval=interval), steps=steps, **KINDS[kind])
    full = {k for k in range(passes) if k % interval == 0} | {passes - 1}
    assert calls.number == policy.tally.evaluated == 2 * depth * len(full)
    assert [n > 0 for n in policy.tally.branches] == [k in full for k in reversed(range(passes))]
    assert policy.tally.of == 2 * depth * passes
    assert policy.tally.nbytes == 2 * depth * 4 * 4 * 32 * 4  # branches, rows, tokens, channels, float32


def test_respaced_steps_are_counted_as_the_sampler_takes_them(dit: DiT) -> None:
    _, policy = drawn(dit, FORA(interval=2), steps="4,2")
    assert policy.tally.branches == [8, 8, 0, 8, 0, 8]


def test_between_full_steps_the_gates_are_those_of_the_present_step(dit: DiT) -> None:
    block, cache = dit.blocks[0], FORA(interval=3).cache(passes=3)
    x, early, later, late = (torch.randn(2, *shape) for shape in ((4, 32), (32,), (4, 32), (32,)))
    cache.run([block], x, early, Tally())
    attn, mlp = cache.kept()
    gate1, gate2 = block.adaLN_modulation(late).chunk(6, dim=1)[2::3]
    expected = later + gate1[:, None] * attn + gate2[:, None] * mlp
    torch.testing.assert_close(cache.run([block], later, late, Tally()), expected)


def test_order_zero_is_fora_bit_for_bit(nano: DiT) -> None:
    how = {"steps": 12, "sampler": "ddim"}
    taylor, policy = drawn(nano, TaylorSeer(interval=4, order=0), **how)
    fora, same = drawn(nano, FORA(interval=4), **how)
    assert torch.equal(taylor, fora)
    assert policy.tally == same.tally


class Line(nn.Module):
    """A branch whose output is a straight line over the passes, whatever its input is."""

    def __init__(self, start: float, slope: float) -> None:
        super().__init__()
        self.start, self.slope, self.now = start, slope, 0

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.start + self.slope * self.now)


class OpenGates(nn.Module):
    """Shift and scale 0, gate 1, twice, for a condition of zeros."""

    def forward(self, c: Tensor) -> Tensor:
        return torch.cat((c, c, c + 1, c, c, c + 1), dim=1)


@settings(max_examples=25, deadline=None)
@given(
    passes=st.integers(6, 20),
    interval=st.integers(1, 5),
    order=st.integers(1, 3),
    start=st.floats(-4, 4),
    slope=st.floats(-4, 4),
)
def test_first_order_and_above_follow_a_straight_line_exactly(
    bench: Any, passes: int, interval: int, order: int, start: float, slope: float
) -> None:
    block, line = bench.small_dit(depth=1).blocks[0], Line(start, slope)
    block.attn, block.mlp = line, line
    block.adaLN_modulation = OpenGates()
    cache, x, c = (
        TaylorSeer(interval=interval, order=order).cache(passes),
        torch.zeros(1, 2, 8),
        torch.zeros(1, 8),
    )
    tally = Tally()
    for line.now in range(passes):
        out = cache.run([block], x, c, tally)
        if sum(n > 0 for n in tally.branches) >= 2:  # a slope takes two full passes
            torch.testing.assert_close(out, 2 * line(x), atol=1e-3, rtol=1e-4)


def test_with_any_change_let_pass_only_the_first_block_runs_after_the_first_step(dit: DiT) -> None:
    with counted(dit) as calls:
        _, policy = drawn(dit, ALWAYS)
    assert policy.tally.branches == [8, 2, 2, 2, 2, 2, 2]
    assert calls.number == policy.tally.evaluated


def test_the_tail_of_the_last_full_step_is_added(dit: DiT) -> None:
    cache, blocks = ALWAYS.cache(2), list(dit.blocks)
    x, c, later = torch.randn(2, 4, 32), torch.randn(2, 32), torch.randn(2, 4, 32)
    tail = cache.stack(blocks, x, c) - blocks[0](x, c)
    torch.testing.assert_close(cache.stack(blocks, later, c), blocks[0](later, c) + tail)


class Adds(nn.Module):
    """A block that adds one number to every token."""

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = amount

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return x + self.amount


def branches_of(tau: float, first_block: tuple[float, ...]) -> list[int]:
    """Branches computed per pass, by a first block that adds these amounts and a second that adds 3."""
    cache, tally, x = FirstBlockCache(tau=tau).cache(len(first_block)), Tally(), torch.zeros(1, 2, 4)
    for amount in first_block:
        cache.run([Adds(amount), Adds(3.0)], x, x, tally)  # type: ignore[list-item]
    return tally.branches


def test_the_first_block_is_compared_with_the_last_full_step_not_the_last_one() -> None:
    """1, 1.08, 1.16: each is within 10 % of its neighbour, the third is not within 10 % of the first."""
    assert branches_of(0.1, (1.0, 1.08, 1.16)) == [4, 2, 4]


def test_tau_0_reuses_nothing_even_where_nothing_changes() -> None:
    assert branches_of(0.0, (1.0, 1.0, 1.0)) == [4, 4, 4]
    assert branches_of(0.0, (0.0, 0.0, 0.0)) == [4, 4, 4]
    assert branches_of(1e-6, (1.0, 1.0, 1.0)) == [4, 2, 2]


def test_a_larger_tau_computes_no_more(nano: DiT) -> None:
    how = {"steps": 20, "sampler": "ddim"}
    work = [drawn(nano, FirstBlockCache(tau=tau), **how)[1].tally.evaluated for tau in (0, 0.1, 0.3, 1e30)]
    assert work == sorted(work, reverse=True)
    assert work[0] > work[1] > work[2] > work[3] == 2 * (12 + 19)


@pytest.mark.parametrize("method", SOME, ids=lambda method: method.name)
def test_nothing_is_left_of_one_generation_in_the_next(dit: DiT, method: StepMethod) -> None:
    policy = fitted(method, dit)
    with policy.attach(dit):
        first = draw(dit)
        first_tally = policy.tally
        draw(dit, labels=[2], seed=5, cfg=1.0)  # another number of rows
        broken_off = dit.steps([0, 1, 2], seed=3)
        next(broken_off)
        assert torch.equal(draw(dit), first)
        assert policy.tally == first_tally
    assert first_tally.evaluated < first_tally.of
    assert not torch.equal(draw(dit), first)


@pytest.mark.parametrize("method", SOME, ids=lambda method: method.name)
def test_two_generations_step_by_step_in_turn_do_not_meet(dit: DiT, method: StepMethod) -> None:
    alone = draw_many(dit, method, seeds=(0,)) + draw_many(dit, method, seeds=(1,))
    together = draw_many(dit, method, seeds=(0, 1))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def draw_many(model: DiT, method: StepMethod, seeds: tuple[int, ...]) -> list[Tensor]:
    with fitted(method, model).attach(model):
        runs = [model.steps([seed], steps=6, seed=seed) for seed in seeds]
        *_, last = zip(*runs, strict=True)
        return [step.x for step in last]


def test_rows_with_and_without_label_do_not_share_what_is_kept(dit: DiT) -> None:
    """With guidance 0 only the rows without a label count: those of a run whose label is "no label"."""
    none = dit.null_label
    how = {"sampler": "ddim", "guided_channels": 4}
    blind, _ = drawn(dit, FORA(interval=3), labels=[1, 2], cfg=0.0, **how)
    unlabelled, _ = drawn(dit, FORA(interval=3), labels=[none, none], cfg=1.0, **how)
    torch.testing.assert_close(blind, unlabelled, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(
        blind, drawn(dit, FORA(interval=3), labels=[1, 2], cfg=1.0, **how)[0], atol=1e-2
    )


def test_outside_a_generation_everything_is_computed(dit: DiT) -> None:
    x, t, y = torch.randn(2, 4, 4, 4), torch.tensor([5, 900]), torch.tensor([0, 1])
    plain = dit(x, t, y)
    with fitted(ALWAYS, dit).attach(dit):
        steps = dit.steps([0], steps=4)
        next(steps), next(steps)
        assert torch.equal(dit(x, t, y), plain)


def test_leaving_the_context_restores_the_model_even_after_an_error(dit: DiT) -> None:
    before = draw(dit)
    policy = fitted(ALWAYS, dit)
    with pytest.raises(InvalidSetting, match="not all labels"), policy.attach(dit):
        draw(dit, labels=[99])
    assert not {"forward", "steps"} & set(vars(dit))
    assert torch.equal(draw(dit), before)


@pytest.mark.parametrize("method", [*NEVER, *SOME], ids=repr)
def test_a_model_of_fewer_blocks_takes_the_same_policy(bench: Any, method: StepMethod) -> None:
    policy = fitted(method, bench.small_dit())
    pruned = keep_blocks(Anatomy.of(bench.small_dit()), [0, 3]).model
    assert isinstance(pruned, DiT)
    with policy.attach(pruned):
        images = draw(pruned)
    assert policy.tally.of == 2 * 2 * 7
    assert torch.equal(images, draw(pruned)) == (method in NEVER)


@pytest.mark.parametrize("method", SOME, ids=lambda method: method.name)
def test_what_is_saved_draws_the_same(dit: DiT, method: StepMethod) -> None:
    policy = fitted(method, dit)
    again = policy_from_json(policy.to_json())
    assert again == policy
    with policy.attach(dit):
        images = draw(dit)
    with again.attach(dit):
        assert torch.equal(draw(dit), images)


def test_nearer_to_the_plain_sample_the_more_is_computed_and_extrapolation_helps(nano: DiT) -> None:
    """At equal work, following the branches beats repeating them."""
    how = {"labels": list(range(5)), "steps": 30, "sampler": "ddim"}
    plain = draw(nano, **how)

    def error(method: StepMethod) -> float:
        return (drawn(nano, method, **how)[0] - plain).square().mean().item()

    fora = [error(FORA(interval=n)) for n in (2, 3, 5)]
    assert 0 < fora[0] < fora[1] < fora[2]
    assert all(error(TaylorSeer(interval=n, order=1)) < e for n, e in zip((2, 3, 5), fora, strict=True))


def test_dopri5_is_refused_and_nothing_else_of_sit(bench: Any) -> None:
    model = bench.small_dit(kind="sit")
    with fitted(SOME[0], model).attach(model), pytest.raises(InvalidSetting, match="dopri5"):
        model.generate([0], sampler="ode")


def test_other_models_are_refused(bench: Any, dit: DiT) -> None:
    with (
        pytest.raises(UnsupportedModel, match="Linear is no diffusion transformer"),
        fitted(FORA(), dit).attach(nn.Linear(2, 2)),
    ):
        pass
    with pytest.raises(UnsupportedModel, match="Planted is no diffusion transformer"):
        FORA().fit(Anatomy.of(bench.Planted(2, [0])), Context(torch.Generator()))


def test_gated_blocks_are_refused(bench: Any) -> None:
    model = bench.small_dit()
    anatomy = Anatomy.of(model)
    policy = fitted(FORA(), model)
    gate(anatomy)
    with pytest.raises(UnsupportedModel, match=r"blocks\.0"), policy.attach(model):
        pass
    ungate(anatomy)
    with policy.attach(model):
        draw(model)


def test_a_second_policy_on_the_same_model_is_refused(dit: DiT) -> None:
    with fitted(SOME[0], dit).attach(dit):
        with pytest.raises(InvalidSetting, match="attached"), fitted(SOME[2], dit).attach(dit):
            pass
        assert "steps" in vars(dit)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("fora", {"interval": 0}),
        ("taylorseer", {"order": -1}),
        ("first_block_cache", {"tau": -0.1}),
        ("first_block_cache", {"tau": float("inf")}),
    ],
)
def test_settings_out_of_range(name: str, setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting, match=next(iter(setting))):
        build(f"diffusion.{name}", setting)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "modicum.cache-policy"}, "no step cache policy"),
        ({"version": 2}, "version 2"),
        ({"method": "prune.wanda", "settings": {}}, "caches no steps"),
        ({"method": "diffusion.forra"}, "forra"),
        ({"settings": {"interval": "often"}}, "interval"),
        ({"settings": {"every": 3}}, "every"),
        ({"settings": None}, "damaged"),
    ],
)
def test_damaged_files_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        policy_from_json({**StepPolicy(FORA()).to_json(), **change})
