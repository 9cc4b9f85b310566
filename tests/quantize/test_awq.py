"""AWQ: the migrated scales leave the model as it was, and everything known of a block moves along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from modicum.calibrate.block import CalibratedBlock, observe
from modicum.calibrate.statistics import Statistics
from modicum.kernels.grids import IntegerScheme
from modicum.method import Target
from modicum.models import Anatomy, Block, Layer, Replay, capture
from modicum.quantize.awq import AWQ
from modicum.quantize.rtn import RTN

EVERYTHING = frozenset({"gram", "column_norm", "mean_abs", "sample"})
MODELS = ["llama", "llama-grouped", "qwen2", "gemma", "gemma2", "opt", "gpt2", "mixtral", "qwen2_moe"]


def seen(replay: Replay, block: Block, wanted: frozenset[str] = EVERYTHING) -> CalibratedBlock:
    """What calibration knows of a block; inputs of later blocks come from the model as it is."""
    hidden = list(replay.hidden)
    for earlier in replay.anatomy.blocks[: block.index]:
        hidden = [replay.run_block(earlier, h, i) for i, h in enumerate(hidden)]
    calibrated = observe(
        block,
        lambda i, h: replay.run_block(block, h, i),
        hidden,
        {layer.name: wanted for layer in block.layers},
        {fold.parent for fold in block.folds},
    )
    calibrated.references = {layer.name: layer.weight.detach().clone() for layer in block.layers}
    return calibrated


@torch.no_grad()
def prepared(model: Any, tokens: Tensor, method: AWQ) -> list[CalibratedBlock]:
    """All blocks of the model after `prepare`, in place."""
    anatomy = Anatomy.of(model)
    replay = capture(anatomy, [tokens])
    blocks = [seen(replay, block) for block in anatomy.blocks]
    for block in blocks:
        method.prepare(block)
    return blocks


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("duo", [False, True])
@torch.no_grad()
def test_preparing_changes_weights_but_no_logit(
    make_model: Callable[[str], Any], tokens: Tensor, name: str, duo: bool
) -> None:
    model = make_model(name)
    before, weights = model(tokens).logits, {k: v.clone() for k, v in model.state_dict().items()}
    blocks = prepared(model, tokens, AWQ(bits=3, group_size=16, ratios=4, duo_scaling=duo))
    torch.testing.assert_close(model(tokens).logits, before, atol=1e-4, rtol=1e-4)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(weights[key], value)}
    for block in blocks:
        moved = {key for f in block.block.folds for layer in f.targets for key in layer.parameter_names}
        assert moved & changed


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_references_follow_the_weights(make_model: Callable[[str], Any], tokens: Tensor, name: str) -> None:
    for block in prepared(make_model(name), tokens, AWQ(bits=3, group_size=16, ratios=4)):
        for layer in block.block.layers:
            torch.testing.assert_close(block.references[layer.name], layer.weight, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_statistics_follow_the_inputs(make_model: Callable[[str], Any], tokens: Tensor, name: str) -> None:
    model = make_model(name)
    blocks = prepared(model, tokens, AWQ(bits=3, group_size=16, ratios=4))
    replay = capture(Anatomy.of(model), [tokens])
    for moved in blocks:
        fresh = seen(replay, replay.anatomy.blocks[moved.block.index])
        for layer in moved.block.layers:
            found, expected = moved.layer_statistics(layer), fresh.layer_statistics(layer)
            assert found.tokens == expected.tokens
            for kind in EVERYTHING:
                old, new = getattr(found, kind), getattr(expected, kind)
                torch.testing.assert_close(old, new, atol=2e-4 * float(new.abs().max()), rtol=2e-4)


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
@torch.no_grad()
def test_the_router_is_scaled_like_the_experts(
    make_model: Callable[[str], Any], tokens: Tensor, name: str
) -> None:
    model = make_model(name)
    gate = model.model.layers[0].mlp.gate.weight
    before, up = gate.clone(), model.model.layers[0].mlp.experts.gate_up_proj[1].clone()
    prepared(model, tokens, AWQ(bits=3, group_size=16, ratios=4))
    scale = (gate / before).mean(0)  # [hidden]
    assert float(scale.max() / scale.min()) > 1.2
    torch.testing.assert_close(model.model.layers[0].mlp.experts.gate_up_proj[1], up * scale)


@torch.no_grad()
def test_experts_are_judged_by_all_their_tokens(make_model: Callable[[str], Any], tokens: Tensor) -> None:
    anatomy = Anatomy.of(make_model("mixtral"))
    block = seen(capture(anatomy, [tokens]), anatomy.blocks[0])
    fold = next(f for f in block.block.folds if f.followers)
    gates = [block.layer_statistics(layer) for layer in fold.targets if layer.role == "gate"]
    total = sum(found.mean_abs * found.tokens for found in gates)  # [in], over every routed vector
    salience = total / sum(found.tokens for found in gates)
    before = fold.targets[0].weight.clone()
    AWQ(bits=3, group_size=16, ratios=8).prepare(block)
    scale = (fold.targets[0].weight / before).median(0).values
    candidates = [salience**r / ((salience**r).max() * (salience**r).min()).sqrt() for r in _ratios(8)[1:]]
    assert any(torch.allclose(scale, candidate, rtol=1e-3) for candidate in candidates)


@torch.no_grad()
def test_the_search_never_does_worse_than_no_scale(make_model: Callable[[str], Any], tokens: Tensor) -> None:
    anatomy = Anatomy.of(make_model("llama"))
    block = seen(capture(anatomy, [tokens]), anatomy.blocks[0])
    method, fold = AWQ(bits=3, group_size=16, only=("q", "k", "v")), anatomy.blocks[0].folds[0]
    wanted, originals = block.replay(fold.parent), [layer.weight.clone() for layer in fold.targets]

    def error(scale: Tensor) -> float:
        for layer, weight in zip(fold.targets, originals, strict=True):
            rounded = RTN(bits=3, group_size=16, symmetric=False).compress(
                _target(layer, weight * scale), NONE
            )
            layer.set_weight(rounded.to_dense() / scale)
        found = sum(
            float((a - b).square().sum()) for a, b in zip(block.replay(fold.parent), wanted, strict=True)
        )
        for layer, weight in zip(fold.targets, originals, strict=True):
            layer.set_weight(weight)
        return found

    salience = block.layer_statistics(fold.targets[0]).mean_abs
    tried = {r: error(salience**r / (salience**r).max().mul((salience**r).min()).sqrt()) for r in _ratios(20)}
    method.prepare(block)
    chosen = fold.targets[0].weight / originals[0]  # [out, in], the same in every row
    assert error(chosen.median(0).values) == pytest.approx(min(tried.values()), rel=1e-2)
    assert min(tried.values()) < tried[0.0]


NONE = Statistics()


def _ratios(count: int) -> list[float]:
    return [step / count for step in range(count)]


def _target(layer: Layer, weight: Tensor) -> Target:
    return Target(layer.name, layer.role, weight)


@torch.no_grad()
def test_a_fold_is_left_alone_unless_all_its_layers_are_quantized(
    make_model: Callable[[str], Any], tokens: Tensor
) -> None:
    model = make_model("llama")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    prepared(model, tokens, AWQ(only=("q", "k", "o", "gate", "down")))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    prepared(model, tokens, AWQ(only=("q", "k", "v")))
    changed = {key for key, value in model.state_dict().items() if not torch.equal(before[key], value)}
    assert changed
    assert all(
        any(part in key for part in ("q_proj", "k_proj", "v_proj", "input_layernorm")) for key in changed
    )


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("width", "group"), [(64, 16), (64, -1), (40, 16), (8, 128)])
def test_clipping_lowers_the_error_of_every_group(symmetric: bool, width: int, group: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, width, generator=generator) ** 3
    inputs = torch.randn(100, width, generator=generator) @ torch.randn(width, width, generator=generator)
    statistics = Statistics(EVERYTHING)
    statistics.update(inputs)

    def errors(clip: bool, role: str) -> Tensor:
        method = AWQ(bits=3, group_size=group, symmetric=symmetric, clip=clip)
        change = method.compress(Target("x", role, weight), statistics).to_dense() - weight
        parts = zip(*(m.split(_span(width, group), dim=1) for m in (inputs, change)), strict=True)
        return torch.stack([(x @ c.T).square().sum(0) for x, c in parts])  # [groups, out]

    clipped, plain = errors(True, "down"), errors(False, "down")
    assert bool((clipped <= plain * 1.001).all())
    assert float(clipped.sum()) < 0.95 * float(plain.sum())
    assert torch.equal(errors(True, "q"), errors(False, "q"))


def _span(width: int, group: int) -> int:
    return width if group == -1 else min(width, IntegerScheme(4, group).group_size)


def test_clipping_without_data_treats_inputs_alike() -> None:
    weight = torch.randn(16, 600, generator=torch.Generator().manual_seed(0)) ** 3
    noise = Statistics.of_white_noise(EVERYTHING, 600, torch.device("cpu"))

    def errors(clip: bool) -> Tensor:
        form = AWQ(bits=3, group_size=100, clip=clip).compress(Target("x", "down", weight), noise)
        return (form.to_dense() - weight).square().unflatten(1, (-1, 100)).sum(-1)  # [out, groups]

    assert bool((errors(True) <= errors(False) * 1.001).all())
    assert float(errors(True).sum()) < 0.95 * float(errors(False).sum())
